"""Steps that can be given up between layers, because something shorter has come meanwhile.

The question is asked before each layer's attention. On a device, launches run ahead of the work:
there the host first waits until the device is at most a few layers behind, so that an answer still
comes in time. What a given-up step has written to pages counts as unwritten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from agentrt.engine.attention.base import AttentionStep, RawAttentionStep
from agentrt.engine.gpu.events import Mark

__all__ = ["Probe", "StepAbandoned", "preemptible"]

AHEAD = 4
"""Layers that the host may be ahead of the device."""


class StepAbandoned(Exception):
    """A step was given up. It says nothing of whether anything is wrong."""


class Probe:
    """Asks before each layer whether the step is to go on.

    Args:
        unwanted: whether it is not.
        device: what computes.
    """

    def __init__(self, unwanted: Callable[[], bool], device: torch.device) -> None:
        self._unwanted = unwanted
        self._device = device
        self._marks: deque[Mark] = deque()

    def ask(self) -> None:
        """Let the device catch up, then ask.

        Raises:
            StepAbandoned: the step is not to go on.
        """
        mark = self._marks.popleft() if len(self._marks) >= AHEAD else Mark(self._device)
        mark.wait()
        if self._unwanted():
            raise StepAbandoned
        mark.set()
        self._marks.append(mark)


class _Preemptible:
    def __init__(self, step: AttentionStep, probe: Probe) -> None:
        self._step = step
        self._probe = probe

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Ask, then attend, as the protocol ``AttentionStep`` says."""
        self._probe.ask()
        return self._step.attend(layer, q, k, v)


class _RawPreemptible(_Preemptible):
    def __init__(self, step: RawAttentionStep, probe: Probe) -> None:
        super().__init__(step, probe)
        self._raw = step

    def attend_raw(
        self,
        layer: int,
        heads: torch.Tensor,
        norm: torch.Tensor | None,
        eps: float,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Ask, then attend, as the protocol ``RawAttentionStep`` says."""
        self._probe.ask()
        return self._raw.attend_raw(layer, heads, norm, eps, rotation)


def preemptible(step: AttentionStep, probe: Probe) -> AttentionStep:
    """Return ``step`` with ``probe`` asked before each layer.

    A step whose layers run within one native call is returned as it is: it goes on to its end.
    """
    if hasattr(step, "operands"):
        return step
    if isinstance(step, RawAttentionStep):
        return _RawPreemptible(step, probe)
    return _Preemptible(step, probe)
