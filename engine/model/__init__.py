"""Models: their configuration, weights and forward pass, and the maker of seeded checkpoints.

It must not know requests or scheduling: it is given tokens, positions and an attention step.
"""

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.weights import load_model

__all__ = ["Decoder", "ModelConfig", "load_model"]
