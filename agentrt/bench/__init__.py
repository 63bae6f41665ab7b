"""Benchmarks: workloads, replays, comparisons, figures and the report.

Reads agents' recorded programs and plays them against the live runtime or the simulator. It must
not decide anything a scheduler decides; ``live`` alone knows the runtime, and is imported only for
live runs, so that comparing policies in simulation needs no model and no torch.
"""
