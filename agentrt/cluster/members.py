"""The workers of a cluster: who takes turns, who only finishes what it has."""

from __future__ import annotations

from collections.abc import Iterator

from agentrt.cluster.state import WorkerState
from agentrt.errors import BackendUnavailable, ConfigError, InternalError

__all__ = ["Members"]


class Members:
    """Workers by name, in order of joining."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerState] = {}
        self._accepting: list[WorkerState] = []

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(self._workers.values())

    def accepting(self) -> list[WorkerState]:
        """Return the workers that take new turns.

        Raises:
            BackendUnavailable: there is none.
        """
        if not self._accepting:
            raise BackendUnavailable(
                "No worker of the cluster takes turns.", remedy="Add a worker, or wait for one."
            )
        return self._accepting

    def get(self, name: str) -> WorkerState:
        """Return a worker, draining or not.

        Raises:
            InternalError: it is not a member.
        """
        worker = self._workers.get(name)
        if worker is None:
            raise InternalError(f"There is no worker {name!r} in the cluster.")
        return worker

    def find_accepting(self, name: str) -> WorkerState | None:
        """Return a worker that takes new turns, or None."""
        worker = self._workers.get(name)
        return None if worker is None or worker.draining else worker

    def add(self, name: str, capacity: int, seats: int, now: float) -> None:
        """Let a worker join; one that was draining takes turns again.

        Raises:
            ConfigError: it is there already, or its sizes are not above 0.
        """
        known = self._workers.get(name)
        if known is not None and not known.draining:
            raise ConfigError(f"The worker {name!r} is there already.", remedy="Use a new name.")
        if capacity < 1 or seats < 1:
            raise ConfigError(
                f"The worker {name!r} has {capacity} tokens and {seats} seats.",
                remedy="Give it a KV pool and seats above 0.",
            )
        if known is not None:
            known.draining = False
        else:
            self._workers[name] = WorkerState(name, capacity, seats, idle_since=now)
        self._refresh()

    def require_another(self, name: str) -> None:
        """Check that a worker besides this one takes turns.

        Raises:
            BackendUnavailable: there is none.
        """
        self.get(name)
        if all(worker.name == name for worker in self._accepting):
            raise BackendUnavailable(
                f"No worker besides {name!r} takes turns.", remedy="Add another worker first."
            )

    def drain(self, name: str) -> WorkerState:
        """Have a worker take no new turns; return it."""
        worker = self.get(name)
        worker.draining = True
        self._refresh()
        return worker

    def remove(self, name: str) -> WorkerState:
        """Take a worker out; return it."""
        worker = self.get(name)
        del self._workers[name]
        self._refresh()
        return worker

    def _refresh(self) -> None:
        self._accepting = [row for row in self._workers.values() if not row.draining]
