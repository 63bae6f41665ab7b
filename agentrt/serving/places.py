"""Which model and adapter a request means, and the desk that it is run at.

Every model has programs, contexts and accounts of its own: a program that uses two models is known
to both, under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrt.serving.errors import NotFound
from agentrt.serving.gate import Gate
from agentrt.serving.jobs import JobMaker
from agentrt.serving.metrics import Metrics, Source
from agentrt.serving.registry import ProgramRegistry
from agentrt.serving.settings import ServeSettings
from agentrt.serving.turns import Desk

if TYPE_CHECKING:
    from agentrt.engine.tokens import PromptBuilder
    from agentrt.served import ServedModel

__all__ = ["Asked", "Place", "Places"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the turns of one model are run."""

    model: ServedModel
    desk: Desk
    jobs: JobMaker


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request means: its place, the adapter if it names one, what answers call the model."""

    place: Place
    adapter: str | None
    name: str


class Places:
    """The places of all models, the first for requests that name none.

    Args:
        models: what is served.
        make_builder: makes the prompt builder of a context of a model.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: ServeSettings,
        gate: Gate,
        *,
        make_builder: Callable[[ServedModel], Callable[[], PromptBuilder]],
        clock: Callable[[], float],
    ) -> None:
        registries = [
            ProgramRegistry(model, settings.limits, make_builder=make_builder(model), clock=clock)
            for model in models
        ]
        sources = [
            Source(model.model_name, model.statistics, registry.statistics, model.accounts)
            for model, registry in zip(models, registries, strict=True)
        ]
        self.metrics = Metrics(sources, clock)
        self._places = [
            Place(
                model,
                Desk(settings, registry, self.metrics, gate),
                JobMaker(model, settings.default_max_tokens),
            )
            for model, registry in zip(models, registries, strict=True)
        ]

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    @property
    def first(self) -> Place:
        """The place of requests that name no model."""
        return self._places[0]

    @property
    def names(self) -> list[str]:
        """All that a request may name: models, then their adapters."""
        models = [place.model.model_name for place in self._places]
        return models + [name for place in self._places for name in place.model.adapters]

    def find(self, name: str | None) -> Asked:
        """Return what a request means by ``name``.

        Raises:
            NotFound: there is no such model or adapter; names those that there are.
        """
        if name is None:
            return Asked(self.first, None, self.first.model.model_name)
        for place in self._places:
            if name == place.model.model_name:
                return Asked(place, None, name)
        for place in self._places:
            if name in place.model.adapters:
                return Asked(place, name, name)
        there = ", ".join(map(repr, self.names))
        raise NotFound(
            f"The model {name!r} is not served here.", remedy=f"Use {there}, or see /v1/models."
        )
