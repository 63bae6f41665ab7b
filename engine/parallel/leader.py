"""Rank 0's model, pages and backend: each step is told to the others and computed with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from agentrt.engine.attention.base import Attention, AttentionStep, BatchLayout
from agentrt.engine.backend import StepHandle, TurnBackend
from agentrt.engine.model.base import Model
from agentrt.engine.model.config import ModelShape
from agentrt.engine.observed import ForwardingBackend
from agentrt.engine.parallel.rank import Pages
from agentrt.engine.parallel.ranks import Ranks
from agentrt.engine.parallel.wire import Step
from agentrt.errors import InternalError
from agentrt.scheduling.plan import StepPlan, StepResult

if TYPE_CHECKING:
    from agentrt.engine.lora.batch import AdapterBatch

__all__ = ["LedAttention", "LedModel", "ParallelBackend", "lead", "led_pages"]


@dataclass(frozen=True, slots=True)
class _LedStep:
    """A step of rank 0's pages, with what the others need to plan the same on theirs."""

    layout: BatchLayout
    own: AttentionStep

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Only rank 0's own step attends."""
        raise InternalError("A step of several ranks goes through their model.")


class LedAttention(Attention):
    """Rank 0's pages; the other ranks have the same, for their heads."""

    def __init__(self, own: Attention) -> None:
        self._own = own

    @property
    def num_pages(self) -> int:
        """Return how many pages there are."""
        return self._own.num_pages

    @property
    def page_size(self) -> int:
        """Return how many tokens a page holds."""
        return self._own.page_size

    @property
    def page_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return what rank 0's part of a page is made of."""
        return self._own.page_tensors

    def plan(self, layout: BatchLayout) -> _LedStep:
        """Prepare one step; see ``Attention.plan``."""
        return _LedStep(layout, self._own.plan(layout))


def led_pages(ranks: Ranks, pages: Pages, make: Callable[[], Attention]) -> LedAttention:
    """Make pages on all ranks; ``make`` makes rank 0's."""
    ranks.make_pages(pages)
    return LedAttention(make())


class LedModel(Model):
    """A model that all ranks compute together. Logits come out here.

    Args:
        own: rank 0's part.
        ranks: the others.
    """

    def __init__(self, own: Model, ranks: Ranks) -> None:
        self._own = own
        self._ranks = ranks

    @property
    def config(self) -> ModelShape:
        """Return the shape of rank 0's part, with the whole vocabulary."""
        return self._own.config

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and activations."""
        return self._own.dtype

    @property
    def device(self) -> torch.device:
        """Return rank 0's device."""
        return self._own.device

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        rows: torch.Tensor,
        adapters: AdapterBatch | None = None,
    ) -> torch.Tensor:
        """Run a batch on all ranks.

        Raises:
            EngineFault: a rank failed.
        """
        assert adapters is None, "several ranks are refused together with adapters"
        assert isinstance(attention, _LedStep), "the step was planned on other pages"
        with self._ranks.together():
            self._ranks.tell(Step(attention.layout, len(rows)))
            self._ranks.group.share(torch.cat((tokens, positions, rows)))
            return self._own.forward(tokens, positions, attention.own, rows)


def lead(
    own: Model, ranks: Ranks, pages: Pages, make: Callable[[], Attention]
) -> tuple[Model, Callable[[], Attention]]:
    """Return the model of all ranks, and what makes their pages; ``make`` makes rank 0's."""
    return LedModel(own, ranks), partial(led_pages, ranks, pages, make)


class ParallelBackend(ForwardingBackend):
    """Runs ``inner`` in step with the other ranks; a rank that fails is a fault of the step."""

    def __init__(self, inner: TurnBackend, ranks: Ranks) -> None:
        super().__init__(inner)
        self._ranks = ranks

    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice of ``plan``. See ``TurnBackend.launch``.

        Raises:
            EngineFault: a rank failed, or did not get through in time.
        """
        with self._ranks.bounded():
            return self._inner.launch(plan)

    def wait(self, handle: StepHandle) -> StepResult:
        """Wait for a step; devices run late. See ``TurnBackend.wait``.

        Raises:
            EngineFault: a rank failed, or did not get through in time.
        """
        with self._ranks.bounded():
            return self._inner.wait(handle)

    def give_up_when(self, unwanted: Callable[[], bool]) -> None:
        """Do nothing: a step that one rank gave up would leave the others waiting in it."""

    def restart(self) -> None:
        """Start anew. See ``TurnBackend.restart``; ranks that failed are launched again."""
        self._ranks.recover()
        with self._ranks.bounded():
            self._inner.restart()
