"""The other ranks as rank 0 sees them: launched, told what to compute, launched again."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentrt.engine.parallel.crew import Crew
from agentrt.engine.parallel.group import TorchGroup
from agentrt.engine.parallel.rank import Pages, RankSettings
from agentrt.engine.parallel.wire import Step, pack_step
from agentrt.errors import BackendUnavailable

__all__ = ["Bounds", "Ranks"]

_REASON = 1.0
"""Seconds in which the reason of a failed operation becomes known, where another rank is it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long may last, in seconds, what ranks do together."""

    meet: float = 120.0
    """From the start of the processes until all have met."""
    load: float = 1800.0
    """Reading the weights."""
    step: float = 180.0
    """One step, or the making of pages."""


class Ranks:
    """Ranks 1 and up. Only the thread that runs steps may call this, once it does.

    Args:
        settings: what rank 0 would be told; the others get their own number and device.
        devices: each rank's, rank 0's first.
        group: rank 0's side of the group.
        bounds: how long things may last.
    """

    def __init__(
        self,
        settings: RankSettings,
        devices: Sequence[str],
        group: TorchGroup,
        bounds: Bounds | None = None,
    ) -> None:
        self._settings = settings
        self._devices = list(devices)
        self.group = group
        self._bounds = bounds or Bounds()
        self._place = Path(tempfile.mkdtemp(prefix="agentrt-ranks-"))
        self._launches = 0
        self._crew: Crew | None = None
        self._in_step = False
        self._depth = 0

    @property
    def crew(self) -> Crew:
        """Return the ranks that run now.

        Raises:
            BackendUnavailable: they have been ended.
        """
        if self._crew is None:
            raise BackendUnavailable(
                "The other ranks have been ended.", remedy="Open the engine again."
            )
        return self._crew

    def launch(self) -> None:
        """Start the processes and meet them; they go on to load their parts.

        Raises:
            EngineFault, BackendUnavailable: a rank failed, or not all came in time.
        """
        self._launches += 1
        meeting = self._place / f"meeting-{self._launches}"
        told = replace(self._settings, meeting=str(meeting), seconds=2 * self._bounds.step)
        others = [
            replace(told, rank=rank, device=device)
            for rank, device in enumerate(self._devices)
            if rank
        ]
        self._crew = Crew(others, self.group.abort)
        try:
            self.crew.await_all("h", self._bounds.meet)
            self.group.join(meeting, 2 * self._bounds.step)
        except BaseException:
            self.end()
            raise

    def loaded(self) -> None:
        """Wait until all ranks have their weights.

        Raises:
            EngineFault: a rank failed, or took too long.
        """
        self.crew.await_all("l", self._bounds.load)
        self._in_step = True

    def make_pages(self, pages: Pages) -> None:
        """Have all ranks make their pool anew, and wait for it.

        Raises:
            EngineFault: a rank failed, or took too long.
        """
        self.crew.send("p", json.dumps(pages.to_json()).encode())
        self.crew.await_all("p", self._bounds.step)

    def tell(self, step: Step) -> None:
        """Have all ranks begin with a step.

        Raises:
            EngineFault: a rank is gone.
        """
        self.crew.send("f", pack_step(step))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within it all ranks do the same, in bounded time; out of step if it raises.

        Raises:
            EngineFault: a rank failed meanwhile, or the time is over.
        """
        with self.bounded():
            self._in_step = False
            yield
            self._in_step = True

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Bound what is within it, and raise ``EngineFault`` if a rank failed meanwhile.

        The outermost of several counts: devices run late, and a step is over when its result is.
        """
        crew, outer = self.crew, self._depth == 0
        if outer:
            crew.limit(self._bounds.step)
        self._depth += 1
        try:
            yield
        except Exception as error:
            if not self._in_step:  # the others wait for us, or we failed because one is gone
                with _because(error):
                    crew.learn(_REASON)
            raise
        finally:
            self._depth -= 1
            if outer:
                crew.limit(None)
        crew.check()

    def recover(self) -> None:
        """Launch the ranks anew unless they are well and in step with us.

        Raises:
            EngineFault, BackendUnavailable: they could not be started again.
        """
        if self._crew is not None and self._in_step and self._crew.failure is None:
            return
        self.end()
        self.launch()
        self.loaded()

    def end(self) -> None:
        """End the processes and leave the group. Idempotent."""
        crew, self._crew = self._crew, None
        if crew is not None:
            # Out of step they wait for each other and hear nothing.
            crew.close(ask=self._in_step)
        self._in_step = False
        self.group.leave()

    def close(self) -> None:
        """End all of it; nothing is left. Idempotent."""
        self.end()
        shutil.rmtree(self._place, ignore_errors=True)


@contextlib.contextmanager
def _because(error: Exception) -> Iterator[None]:
    """Name ``error`` as the cause of what is raised within."""
    try:
        yield
    except Exception as reason:
        raise reason from error
