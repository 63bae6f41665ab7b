"""The data side of a step: queries become tables behind handles, tables what conditions read."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio.to_thread

from agentrt.errors import AgentRTError
from agentrt.workflows.data import DataStore, Handle
from agentrt.workflows.executor_context import StepContext, StepFailure
from agentrt.workflows.guide import Guide, QueryUse, Step
from agentrt.workflows.predicate import PredicateError, parse_expression, parse_predicate
from agentrt.workflows.prompt import fill
from agentrt.workflows.queries import BoundQuery, QueryTemplates

__all__ = ["ITEM", "StepData", "evaluate", "typed_parameters"]

ITEM = "item"
MOST_ITEMS = 200


def evaluate(text: str, data: Mapping[str, Any]) -> bool:
    """Decide a predicate on a step's data.

    Raises:
        PredicateError: the data cannot decide it.
    """
    return parse_predicate(text).evaluate(data)


def typed_parameters(guide: Guide, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the run's parameters as what their types say, for conditions to compare.

    Raises:
        StepFailure: a value is not of its parameter's type.
    """
    return {
        **values,
        **{
            p.name: _typed(p.name, p.type, values[p.name])
            for p in guide.parameters
            if p.name in values
        },
    }


def _typed(name: str, kind: str, value: str) -> Any:
    try:
        if kind == "integer":
            return int(value)
        if kind == "number":
            return float(value)
    except (TypeError, ValueError) as error:
        raise StepFailure(
            f"The parameter {name} is {value!r}, which is no {kind}.", remedy="Correct it."
        ) from error
    if kind == "boolean":
        return str(value).strip().lower() in ("true", "yes", "1")
    return value


@dataclass(frozen=True, slots=True)
class StepData:
    """Runs a step's queries, and loads the tables that its conditions name.

    Args:
        templates: the guide's queries; None where it has none.
        store: where tables are kept.
    """

    templates: QueryTemplates | None
    store: DataStore | None

    async def items(self, guide: Guide, step: Step, context: StepContext) -> list[Any]:
        """Return the values that the step is run for, each once, in the order they occur.

        Raises:
            PredicateError: the expression cannot be computed.
            StepFailure: it is no list, or too long.
        """
        expression = parse_expression(step.for_each or "")
        data = await self.named(guide, context, {}, expression.names)
        found = expression.value(data)
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise StepFailure(
                f"`{step.for_each}` is not a list of values.", remedy="Name a column of a query."
            )
        items = list(dict.fromkeys(value for value in found if value is not None))
        if len(items) > MOST_ITEMS:
            raise StepFailure(
                f"`{step.for_each}` has {len(items)} values; at most {MOST_ITEMS} are run.",
                remedy="Let the query return fewer.",
            )
        return items

    async def query(self, use: QueryUse, values: Mapping[str, Any], context: StepContext) -> Handle:
        """Run one query and return the handle of its answer.

        Raises:
            AgentRTError: the query is unknown, its values are wrong, or it failed.
        """
        templates, store = self._ready(use.query)
        texts = {name: str(value) for name, value in values.items()}
        given = {
            name: values[ITEM] if text == ITEM and ITEM in values else fill(text, texts)
            for name, text in use.arguments.items()
        }
        bound = templates.bind(use.query, given, context=values)
        outcome = await context.calls.call(
            "query_run", bound.describe(), partial(_answer, templates, store, bound)
        )
        return Handle.from_json(outcome["handle"])

    async def merged(self, name: str, parts: Sequence[tuple[Any, Handle]]) -> Handle:
        """Return one table of the tables of all items, with the item in a first column."""
        _, store = self._ready(name)
        return await anyio.to_thread.run_sync(_merge, store, name, parts)

    async def named(
        self,
        guide: Guide,
        context: StepContext,
        own: Mapping[str, Any],
        names: Iterable[str],
    ) -> dict[str, Any]:
        """Return what conditions that read ``names`` are decided on.

        These are the parameters, the tables of the steps before this one, and its own results,
        where the later hides the earlier.
        """
        first = {name.partition(".")[0] for name in names}
        data = typed_parameters(guide, context.parameters)
        for result in [*context.visible.values(), own]:
            data |= result.get("values", {})
            for name, handle in result.get("handles", {}).items():
                if name in first:
                    data[name] = await self._table(Handle.from_json(handle))
        return data

    async def _table(self, handle: Handle) -> dict[str, Any]:
        _, store = self._ready(handle.name)
        columns = await anyio.to_thread.run_sync(store.columns, handle.id)
        return {"rows": handle.rows, **columns}

    def _ready(self, query: str) -> tuple[QueryTemplates, DataStore]:
        if self.templates is None or self.store is None:
            raise StepFailure(
                f"The guide uses the query {query!r} but was given no query templates.",
                remedy="Name the file: <!-- guide: queries=FILE.toml -->",
            )
        return self.templates, self.store


async def _answer(templates: QueryTemplates, store: DataStore, bound: BoundQuery) -> dict[str, Any]:
    """Ask in a thread; a cancelled wait tells the source to stop and does not wait for it."""
    cancelled = threading.Event()
    try:
        found = await anyio.to_thread.run_sync(
            partial(templates.run, bound, cancelled=cancelled), abandon_on_cancel=True
        )
    finally:
        cancelled.set()
    put = partial(store.put, bound.query.name, found.columns, found.rows, truncated=found.truncated)
    handle = await anyio.to_thread.run_sync(put)
    return {"handle": handle.to_json()}


def _merge(store: DataStore, name: str, parts: Sequence[tuple[Any, Handle]]) -> Handle:
    columns: list[str] = []
    for _, handle in parts:
        columns += [c.name for c in handle.columns if c.name not in columns and c.name != ITEM]
    rows = [
        [item, *(row.get(column) for column in columns)]
        for item, handle in parts
        for row in _records(store, handle)
    ]
    truncated = any(handle.truncated for _, handle in parts)
    return store.put(name, [ITEM, *columns], rows, truncated=truncated)


def _records(store: DataStore, handle: Handle) -> list[dict[str, Any]]:
    names = [column.name for column in handle.columns]
    return [dict(zip(names, row, strict=True)) for row in store.rows(handle)]


def condition_names(predicates: Iterable[str | None]) -> set[str]:
    """Return every name that predicates read; one that cannot be parsed reads none."""
    names: set[str] = set()
    for text in predicates:
        try:
            names |= parse_predicate(text).names if text else set()
        except PredicateError:
            continue  # deciding it says so, with the edge's name
    return names


def message_of(error: AgentRTError) -> str:
    """Return one line on a failure for a log."""
    return f"{type(error).__name__}: {error}"
