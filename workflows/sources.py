"""The sources that answer queries: one function each, all read-only, limited and interruptible."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeAlias

from agentrt.workflows.queries_model import BoundQuery, Control, QueryResult
from agentrt.workflows.sources_log import ask_log
from agentrt.workflows.sources_postgres import ask_postgres
from agentrt.workflows.sources_prometheus import ask_prometheus
from agentrt.workflows.sources_recorded import ask_recorded
from agentrt.workflows.sources_sqlite import ask_sqlite

__all__ = ["ASK", "Ask", "answer"]

Ask: TypeAlias = Callable[[BoundQuery, Control], QueryResult]
"""Asks a source and waits: raises QueryTimeout at the limit of the control, else QueryFailed."""

ASK: Mapping[str, Ask] = {
    "sqlite": ask_sqlite,
    "postgres": lambda bound, control: ask_postgres(bound, control, environment=os.environ),
    "prometheus": lambda bound, control: ask_prometheus(bound, control, environment=os.environ),
    "log": ask_log,
    "recorded": ask_recorded,
}
"""How each type of source is asked."""


def answer(bound: BoundQuery, control: Control) -> QueryResult:
    """Return what the source of a bound query answers.

    Raises:
        QueryTimeout: the limit passed, or it was cancelled.
        QueryFailed: the source refused, is not there, or answered nonsense.
    """
    return ASK[bound.source.type](bound, control)
