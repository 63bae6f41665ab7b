"""Steps on a device that never waits for the host: graphs, one copy a step, tokens that stay there.

Everything but the calls of CUDA itself also runs on the CPU, where it is tested. Nothing here knows
schedulers or threads.
"""
