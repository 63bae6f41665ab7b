"""Attention over paged keys and values: the protocol and its torch implementation.

It must not know requests, sampling or scheduling policy: it is given positions and page tables.
"""
