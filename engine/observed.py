"""Backends around another one: one that only passes on, one that tells of each step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from agentrt.engine.backend import StepHandle, TurnBackend
from agentrt.engine.choices import ChoiceTrie
from agentrt.engine.params import SamplingParams
from agentrt.scheduling.plan import StepPlan, StepResult

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.matcher import CompiledGrammar

__all__ = ["ForwardingBackend", "ObservedBackend", "OnStep"]

OnStep: TypeAlias = Callable[[StepPlan, float, float], None]
"""``(plan, start, end)``: called in the engine's thread after each step, in the clock's seconds."""


class ForwardingBackend(TurnBackend):
    """Passes everything on to ``inner``; the base of backends that add to one of the calls."""

    def __init__(self, inner: TurnBackend) -> None:
        self._inner = inner

    def open(
        self,
        turn_id: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        forced: Sequence[int] | None = None,
        choices: ChoiceTrie | None = None,
        grammar: CompiledGrammar | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Make a turn known. See ``TurnBackend.open``."""
        self._inner.open(turn_id, prompt, sampling, forced, choices, grammar, adapter)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Replace the end of a prompt. See ``TurnBackend.revise``."""
        self._inner.revise(turn_id, keep, tokens)

    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice of ``plan``. See ``TurnBackend.launch``."""
        return self._inner.launch(plan)

    def wait(self, handle: StepHandle) -> StepResult:
        """Block until the samples are known. See ``TurnBackend.wait``."""
        return self._inner.wait(handle)

    def follows(self, plan: StepPlan) -> bool:
        """Whether the next step may be launched early. See ``TurnBackend.follows``."""
        return self._inner.follows(plan)

    def give_up_when(self, unwanted: Callable[[], bool]) -> None:
        """Ask whether long steps are still wanted. See ``TurnBackend.give_up_when``."""
        self._inner.give_up_when(unwanted)

    def close(self, turn_id: str) -> None:
        """Forget a turn. See ``TurnBackend.close``."""
        self._inner.close(turn_id)

    def restart(self) -> None:
        """Start anew. See ``TurnBackend.restart``."""
        self._inner.restart()


class ObservedBackend(ForwardingBackend):
    """Tells of every step. One that was launched early begins, as told, where the last one ends."""

    def __init__(self, inner: TurnBackend, on_step: OnStep, clock: Callable[[], float]) -> None:
        super().__init__(inner)
        self._on_step = on_step
        self._clock = clock
        self._launched: deque[float] = deque()
        self._ended = -math.inf

    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice of ``plan``. See ``TurnBackend.launch``."""
        start = self._clock()
        handle = self._inner.launch(plan)
        self._launched.append(start)
        return handle

    def wait(self, handle: StepHandle) -> StepResult:
        """Block until the samples are known. See ``TurnBackend.wait``."""
        start = max(self._launched.popleft(), self._ended)
        result = self._inner.wait(handle)
        self._ended = self._clock()
        self._on_step(handle.plan, start, self._ended)
        return result
