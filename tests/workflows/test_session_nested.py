"""A nested guide's run: gone on with, taken as it ended, or begun anew for a retry."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from agentrt.errors import InvalidRequest
from agentrt.workflows.session import _Nested


@dataclass
class Log:
    """Knows which runs there are, and their status."""

    runs: dict[str, str] = field(default_factory=dict)

    def run(self, run_id: str) -> str:
        if run_id not in self.runs:
            raise InvalidRequest(f"No run {run_id}.", remedy="Use one that is there.")
        return run_id


class Runner:
    """Stands for the nested guide's runner; notes what it is asked to do."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.asked: list[tuple[str, str]] = []

    def outcome(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(status=self.log.runs[run_id], run_id=run_id)

    async def resume(self, run_id: str) -> str:
        self.asked.append(("resume", run_id))
        return run_id

    async def run(self, parameters: object, *, run_id: str) -> str:
        self.asked.append(("run", run_id))
        return run_id


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("runs", "asked"),
    [
        ({}, [("run", "r.Step1")]),
        ({"r.Step1": "running"}, [("resume", "r.Step1")]),
        ({"r.Step1": "succeeded"}, []),
        ({"r.Step1": "inconclusive"}, []),
        ({"r.Step1": "failed"}, [("run", "r.Step1~2")]),
        ({"r.Step1": "failed", "r.Step1~2": "timed_out"}, [("run", "r.Step1~3")]),
        ({"r.Step1": "failed", "r.Step1~2": "running"}, [("resume", "r.Step1~2")]),
    ],
)
async def test_a_retry_begins_another_run(runs, asked) -> None:
    log = Log(runs)
    runner = Runner(log)
    nested = _Nested(SimpleNamespace(log=log, depth=0), SimpleNamespace(path="x.md"))
    await nested._run(runner, {}, "r.Step1")
    assert runner.asked == asked
