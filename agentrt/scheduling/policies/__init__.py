"""The policies, each in a file of its own with the source of its formula.

They see turns, contexts, programs and the pool through views, and know nothing of pages, the
engine or each other's state. They are named in :mod:`agentrt.scheduling.registry`.
"""
