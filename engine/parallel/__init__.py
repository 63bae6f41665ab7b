"""One model on several devices of one host: every rank holds a part of each layer.

Rank 0 is the engine's own process: it schedules, samples and serves. The other ranks are processes
that it starts; they follow what rank 0 tells them, step by step. ``sharding`` is pure. Nothing here
knows turns, programs or scheduling.
"""
