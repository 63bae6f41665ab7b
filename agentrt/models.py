"""The models of a runtime: each with an engine of its own while it is in device memory.

Where they do not all fit, a turn for one that is not loaded puts others out: those that were not
used for longest, idle ones first, after their turns have ended. Their weights are dropped; their
files stay in the page cache as far as the machine has memory for it, which is what a reload reads.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from agentrt.engine.memory import MemoryPlan
from agentrt.errors import InvalidRequest
from agentrt.residency import make_room
from agentrt.served import Assembled, Load, ServedModel

if TYPE_CHECKING:
    from agentrt.engine.engine import Engine

__all__ = ["ModelHost"]

_logger = logging.getLogger(__name__)


class ModelHost:
    """Loads models and puts them out, within the plan. Belongs to one event loop.

    Args:
        plan: of the device's memory.
        build: reads a model's weights and wires its engine; blocking.
    """

    def __init__(self, plan: MemoryPlan, build: Callable[[ServedModel], Assembled]) -> None:
        self.plan = plan
        self.models: list[ServedModel] = []
        self._build = build
        self._uses = itertools.count(1)
        self._lock = anyio.Lock()

    def find(self, name: str) -> ServedModel:
        """Return a model by name.

        Raises:
            InvalidRequest: there is none; names those that there are.
        """
        for model in self.models:
            if model.model_name == name:
                return model
        raise InvalidRequest(
            f"There is no model {name!r}.",
            remedy=f"Use one of {', '.join(model.model_name for model in self.models)}.",
        )

    def start(self, model: ServedModel, assembled: Assembled) -> None:
        """Start a model's engine."""
        assembled.engine.start()
        model.put(assembled)

    async def acquire(self, model: ServedModel) -> Engine:
        """Return a model's engine, loading it if need be; the caller is ``inside`` from then on.

        Whoever waits for a load gets in before the model can be put out again; who comes while it
        is on its way out waits for its return.
        """
        promised = False
        while (engine := model.engine) is None or (model.leaving and not promised):
            if model.load is None:
                await self._load(model)
            else:
                promised = await _wait(model, model.load)
        model.promised -= promised
        model.inside += 1
        model.used = next(self._uses)
        return engine

    async def _load(self, model: ServedModel) -> None:
        load = model.load = Load(anyio.Event())
        try:
            async with self._lock:
                loaded = [one.standing() for one in self.models if one.engine is not None]
                for name in make_room(model.plan.peak, loaded, self.plan.capacity):
                    await self._put_out(self.find(name))
                # Once begun it is seen to its end: half of it would hold memory that nobody counts.
                with anyio.CancelScope(shield=True):
                    _logger.info("Loading %s.", model.model_name)
                    self.start(model, await anyio.to_thread.run_sync(self._build, model))
            load.good = True
            model.promised += load.waiters
        finally:
            model.load = None
            load.over.set()

    async def _put_out(self, model: ServedModel) -> None:
        """Let a model's turns end, then drop it."""
        engine = model.engine
        if engine is None:
            return
        model.leaving = True
        try:
            while model.inside or model.promised:
                model.changed = anyio.Event()
                await model.changed.wait()
            _logger.info("%s leaves device memory.", model.model_name)
            with anyio.CancelScope(shield=True):
                await engine.aclose(drain=math.inf)
                model.drop()
                del engine
                await anyio.to_thread.run_sync(_collect)
        finally:
            model.leaving = False

    async def aclose(self) -> None:
        """End all engines; their turns are cancelled."""
        with anyio.CancelScope(shield=True):
            for model in self.models:
                if model.engine is not None:
                    await model.engine.aclose()


async def _wait(model: ServedModel, load: Load) -> bool:
    """Wait for a load; whether it was good, and the caller one of those that it was promised to."""
    load.waiters += 1
    try:
        await load.over.wait()
    except BaseException:
        if load.good:
            model.promised -= 1
            model.changed.set()
        raise
    finally:
        load.waiters -= 1
    return load.good


def _collect() -> None:
    """Give back what a dropped engine held: it is a web of references to each other."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
