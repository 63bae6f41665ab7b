"""The scheduling core: who runs next, what KV stays, who may start.

Pure: no torch, no clock, no files, no threads. It must not know the engine; the page cache that it
drives is handed in.
"""
