"""Starting anew after a fault: all KV is forgotten, the backend rebuilt, and turns wait again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from agentrt.engine.backend import TurnBackend
from agentrt.engine.faults import Fault, FaultWatch
from agentrt.engine.tiers.base import PageMover
from agentrt.scheduling.plan import SchedulerProtocol

__all__ = ["Restarter"]

_logger = logging.getLogger(__name__)


class Restarter:
    """Brings scheduler, backend and the mover of pages back to an empty start."""

    def __init__(
        self,
        scheduler: SchedulerProtocol,
        backend: TurnBackend,
        mover: PageMover | None,
        faults: FaultWatch,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._mover = mover
        self._faults = faults
        self._clock = clock

    def restart(self, fault: Fault, tell: Callable[[Fault], None]) -> None:
        """Start anew, again if need be; no step is under way. ``tell`` hears of every fault.

        Raises:
            EngineFault: that has happened too often, or the backend could not be rebuilt.
        """
        while True:
            tell(fault)
            if not self._faults.restart(self._clock()):
                raise self._faults.given_up(fault)
            _logger.warning("The engine starts anew. %s", fault.text)
            if self._mover is not None:
                self._mover.halt()
            self._scheduler.restart(self._clock())
            try:
                self._backend.restart()
                if self._mover is not None:
                    self._mover.resume()
                return
            except Exception as error:
                _logger.exception("The backend could not be rebuilt")
                said = f"{type(error).__name__}: {error}"
                fault = Fault("restart", f"The backend could not be rebuilt: {said}")
