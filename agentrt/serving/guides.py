"""Guide runs over HTTP: which there are, what they wait for, and answers to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread

from agentrt.errors import ConfigError, InvalidRequest

__all__ = ["GuideRuns"]


class GuideRuns:
    """The runs in one directory, as ``agentrt guide --out DIRECTORY`` keeps them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def listing(self) -> dict[str, Any]:
        """Return every run, oldest first, with the gates that are open."""
        from agentrt.workflows.gates import list_runs

        rows = await anyio.to_thread.run_sync(list_runs, self._directory)
        return {"object": "list", "data": [row.to_json() for row in rows]}

    async def answer(self, run_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Record ``{"gate": …, "answer": …}``; ``driven`` says whether a process goes on with it.

        Raises:
            InvalidRequest: a field is missing, the run does not wait for the gate, or the answer is
                not among its options.
        """
        from agentrt.workflows.gates import answer_gate

        gate, answer = (_text(body, name) for name in ("gate", "answer"))
        try:
            driven = await anyio.to_thread.run_sync(
                answer_gate, self._directory, run_id, gate, answer
            )
        except ConfigError as error:
            raise InvalidRequest(error.message, remedy=error.remedy) from error
        return {"run": run_id, "gate": gate, "answer": answer, "driven": driven}


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(
            f"{name} is missing.", remedy='Send {"gate": "STEP/approve", "answer": "approve"}.'
        )
    return value
