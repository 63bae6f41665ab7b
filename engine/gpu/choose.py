"""Whether decode steps are recorded, and launched early, by what was asked for and what works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from agentrt.engine.attention.base import Attention, StaticAttention
from agentrt.engine.gpu.capture import Capturer, CudaCapturer, Replayed
from agentrt.engine.gpu.runner import DeviceBackend
from agentrt.engine.model.base import Model
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.runner import TorchBackend
from agentrt.errors import ConfigError

__all__ = ["StepMode", "choose_steps", "make_backend", "obstacle"]

_logger = logging.getLogger(__name__)
SETTINGS = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class StepMode:
    """How steps of plain decodes run.

    ``graphs``: recorded once and launched again. ``overlap``: each launched before the tokens of
    the one before it are read, which needs the same buffers, recorded or not.
    """

    graphs: bool
    overlap: bool

    @property
    def static(self) -> bool:
        """Whether steps read buffers that keep their places."""
        return self.graphs or self.overlap


def choose_steps(graphs: str, overlap: str, device: str, obstacle: str | None) -> StepMode:
    """Decide how steps run; ``auto`` is on for CUDA where nothing is in the way, else off.

    Args:
        graphs: ``auto``, ``on`` or ``off``.
        overlap: likewise.
        device: ``cpu`` or ``cuda``.
        obstacle: what :func:`obstacle` says.

    Raises:
        ConfigError: an unknown setting, or one is on and cannot be.
    """
    for name, setting in (("graphs", graphs), ("overlap", overlap)):
        if setting not in SETTINGS:
            raise ConfigError(
                f"There is no {name} setting {setting!r}.",
                remedy=f"Use one of {', '.join(SETTINGS)}.",
            )
        if setting == "on" and obstacle is not None:
            raise ConfigError(
                f"{name} is on, but {obstacle}.",
                remedy=f"Set {name} to auto, or use our own decoder (native) and, on the CPU, the "
                "attention torch.",
            )
    auto = device == "cuda" and obstacle is None
    if device == "cuda" and obstacle is not None:
        _logger.info("Decode steps are not recorded: %s.", obstacle)
    return StepMode(
        graphs == "on" or (graphs == "auto" and auto),
        overlap == "on" or (overlap == "auto" and auto),
    )


def obstacle(model: Model, attention: Attention) -> str | None:
    """Say why steps of this model cannot run over buffers; None if they can."""
    if not isinstance(model, Decoder):
        return f"{type(model).__name__} may wait for its device within a step"
    if not isinstance(attention, StaticAttention):
        return f"{type(attention).__name__} has no decode steps over buffers"
    return None


def make_backend(
    model: Model,
    new_attention: Callable[[], Attention],
    mode: Callable[[str | None], StepMode],
    most: int,
) -> tuple[TorchBackend, StepMode]:
    """Return the backend for a model, and how its steps run.

    Args:
        model: the model.
        new_attention: makes empty pages, now and after a fault.
        mode: decides, given the obstacle.
        most: sequences of a step at most.

    Raises:
        ConfigError: what was asked for cannot be.
    """
    attention = new_attention()
    chosen = mode(obstacle(model, attention))
    if not chosen.static:
        return TorchBackend(model, attention, rebuild=new_attention), chosen
    device = model.device

    def capturer() -> Capturer:
        return CudaCapturer(device) if chosen.graphs and device.type == "cuda" else Replayed()

    backend = DeviceBackend(model, attention, most=most, capturer=capturer, rebuild=new_attention)
    return backend, chosen
