"""Models: their configuration, weights and forward pass, and the maker of seeded checkpoints.

It must not know requests or scheduling: it is given tokens, positions and an attention step.
"""
