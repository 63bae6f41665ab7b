"""A model as programs and servers see it: one name, whether its engine is there or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from agentrt.engine.memory import ModelPlan
from agentrt.errors import ConfigError
from agentrt.residency import Standing
from agentrt.scheduling.plan import SchedulerStatistics

if TYPE_CHECKING:
    from agentrt.engine.engine import Engine, EngineRequest, EngineStatistics, TurnStream
    from agentrt.engine.lora.book import AdapterBook
    from agentrt.engine.model.base import Model
    from agentrt.engine.opened import OpenTurn
    from agentrt.engine.tokens import Tokenizer
    from agentrt.loading import Found
    from agentrt.program import Program
    from agentrt.scheduling.graph_declared import Edge, Step
    from agentrt.scheduling.plan import ToolEvent
    from agentrt.scheduling.tenants import TenantBook, TenantStatistics

__all__ = ["Assembled", "Load", "ServedModel"]


@dataclass(frozen=True, slots=True)
class Assembled:
    """A loaded model's engine, not started, with what belongs to it."""

    engine: Engine
    tenants: TenantBook
    adapters: AdapterBook
    model: Model


@dataclass(slots=True, eq=False)
class Load:
    """A load that is under way, and how many others wait for it."""

    over: anyio.Event
    waiters: int = 0
    good: bool = False


class _NoPosts:
    """Takes what an open turn says of itself, and computes nothing ahead."""

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Ignore it."""

    def close_opened(self, turn_id: str) -> None:
        """Ignore it."""


class ServedModel:
    """One model by name, as programs and servers see it; stands for its engine, loaded or not.

    Attributes:
        model_name: what requests call it.
        tokenizer: its tokenizer.
        max_context: tokens of prompt and output together at most.
        plan: what it takes of the device.
    """

    def __init__(
        self,
        found: Found,
        plan: ModelPlan,
        tenants: TenantBook,
        acquire: Callable[[ServedModel], Awaitable[Engine]],
        make_program: Callable[..., Program],
    ) -> None:
        self.found = found
        self.plan = plan
        self.model_name = found.name
        self.tokenizer: Tokenizer = found.tokenizer
        self.max_context = found.source.shape.max_positions
        self.loads = 0
        self._acquire = acquire
        self._make_program = make_program
        self._now: Assembled | None = None
        self._last: EngineStatistics | None = None
        self.tenants = tenants
        """The accounts of its tenants; a model that is loaded again begins with new ones."""
        # For the host alone:
        self.inside = 0  # tasks that have the engine and are handing in a turn
        self.promised = 0  # tasks that have waited for the last load and go first
        self.leaving = False
        self.used = 0
        self.load: Load | None = None
        self.changed = anyio.Event()

    # --- for programs

    async def submit(self, request: EngineRequest) -> TurnStream:
        """Hand in a turn, loading the model first if need be. See ``Engine.submit``."""
        return await self._hand_in(request, None, None)

    async def _hand_in(
        self, request: EngineRequest, opened: str | None, by: Engine | None
    ) -> TurnStream:
        engine = await self._acquire(self)
        try:
            # An open turn is known to the engine that has opened it alone.
            return await engine.hand_in(request, opened if engine is by else None)
        finally:
            self.inside -= 1
            self.changed.set()

    def open(
        self,
        prefix: Sequence[int],
        *,
        turn_id: str,
        program_id: str,
        context: str = "main",
        adapter: str | None = None,
    ) -> OpenTurn:
        """Open a turn that grows. See ``Engine.open``; nothing is computed while not loaded."""
        from agentrt.engine.opened import OpenTurn

        engine = self.engine

        def hand_in(request: EngineRequest, opened: str | None) -> Awaitable[TurnStream]:
            return self._hand_in(request, opened, engine)

        if engine is None or self.leaving:
            return OpenTurn(turn_id, prefix, _NoPosts(), hand_in)
        return engine.open(
            prefix,
            turn_id=turn_id,
            program_id=program_id,
            context=context,
            adapter=adapter,
            hand_in=hand_in,
        )

    def end_program(self, program_id: str) -> None:
        """See ``Engine.end_program``; an engine that is gone has forgotten it."""
        if self.engine is not None:
            self.engine.end_program(program_id)

    def end_context(self, program_id: str, context: str) -> None:
        """See ``Engine.end_context``."""
        if self.engine is not None:
            self.engine.end_context(program_id, context)

    def declare(self, program_id: str, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """See ``Engine.declare``; it is a hint, and lost with the engine."""
        if self.engine is not None:
            self.engine.declare(program_id, steps, edges)

    def tool_event(self, event: ToolEvent) -> None:
        """See ``Engine.tool_event``."""
        if self.engine is not None:
            self.engine.tool_event(event)

    # --- for servers

    def program(self, program_id: str | None = None, *, tenant: str = "default") -> Program:
        """Return a new program whose turns this model computes. See ``Runtime.program``."""
        return self._make_program(program_id, tenant=tenant, model=self.model_name)

    @property
    def engine(self) -> Engine | None:
        """The engine, while the model is in device memory."""
        return None if self._now is None else self._now.engine

    @property
    def adapters(self) -> list[str]:
        """The names of its adapters."""
        if self._now is None:
            return sorted(self.found.adapters)
        return self._now.adapters.names

    def load_adapter(self, name: str, directory: Path | str) -> None:
        """Offer another adapter; blocking. See ``Runtime.load_adapter``."""
        from agentrt.loading import adapter_files

        now = self._now
        if now is None:
            raise ConfigError(
                f"{self.model_name} is not in device memory.",
                remedy="Give it a turn first, or open the runtime with the adapter.",
            )
        files = adapter_files(directory, self.found.source.shape, self.model_name)
        now.adapters.add(files.load(name, now.model.dtype, now.model.device))

    def drop_adapter(self, name: str) -> None:
        """Offer an adapter no longer. See ``Runtime.drop_adapter``."""
        if self._now is not None:
            self._now.adapters.remove(name)

    def accounts(self) -> Mapping[str, TenantStatistics]:
        """Return the accounts of tenants, by name."""
        return self.tenants.statistics()

    def statistics(self) -> EngineStatistics:
        """Return the figures as of the last step, also of an engine that is gone."""
        from agentrt.engine.statistics import EngineStatistics

        if self._now is not None:
            return self._now.engine.statistics()
        if self._last is not None:
            return replace(self._last, state="unloaded", turns=0)
        nothing = {one.name: 0 for one in fields(SchedulerStatistics)}
        nothing |= {"pages_total": self.plan.pages, "page_size": self.plan.page_size}
        return EngineStatistics("unloaded", SchedulerStatistics(**nothing))

    # --- for the host

    def standing(self) -> Standing:
        """Return what deciding who leaves needs to know of a loaded model."""
        busy = self.inside + self.promised > 0 or self.statistics().turns > 0
        return Standing(self.model_name, self.plan.total, busy, self.used)

    def put(self, assembled: Assembled) -> None:
        """Take an engine that was started."""
        self._now, self.tenants = assembled, assembled.tenants
        self.loads += 1

    def drop(self) -> None:
        """Let go of an engine that has ended, and with it of all that is in device memory."""
        if self._now is not None:
            self._last = self._now.engine.statistics()
        self._now = None

    def __repr__(self) -> str:
        return f"<ServedModel {self.model_name} [{self.statistics().state}]>"
