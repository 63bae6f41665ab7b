"""Pipelines of plain Python functions, run by the same schedule, log and runner as guides.

A step is a function; calling it calls the function, so it is tested like any other::

    @step
    def numbers(count: int) -> list[int]: ...

    @step(retries=2, timeout=30)
    def total(numbers: list[int]) -> int: ...       # the parameter names the step it needs

    pipeline = Pipeline("sums", [numbers, total])
    outcome = await pipeline.runner(log).run(pipeline.parameters(count=3))

What a step returns is kept in the log as JSON, so a resumed run does not call it again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, overload

import anyio.to_thread

from agentrt.errors import GuideError
from agentrt.workflows.decide import decide_edges
from agentrt.workflows.executor_context import StepContext, StepFailure, StepOutcome
from agentrt.workflows.guide import (
    END,
    START,
    Edge,
    Guide,
    Join,
    Parameter,
    Retry,
    Step,
    StepPolicy,
)
from agentrt.workflows.log import RunLog
from agentrt.workflows.plan import Plan, make_plan
from agentrt.workflows.predicate import parse_predicate
from agentrt.workflows.prompt import clip
from agentrt.workflows.python_values import decode, encode, hints
from agentrt.workflows.run import GuideRunner

__all__ = ["After", "Pipeline", "StepFunction", "after", "step"]

P = ParamSpec("P")
R = TypeVar("R")
When: TypeAlias = str | Callable[[Any], bool] | None

FINISH = "finish"
"""The step that waits for every last step of a pipeline that has several."""


@dataclass(frozen=True, slots=True)
class After:
    """An edge into a step: from which one, and when it is taken; None is always."""

    source: str
    when: When = None
    otherwise: bool = False


def after(
    source: StepFunction[Any, Any] | str, when: When = None, *, otherwise: bool = False
) -> After:
    """Return an edge for ``step(after=[...])``.

    Args:
        when: a function of the source's result, or a condition in the guides' language over
            ``result``; None takes the edge whenever the source succeeds.
        otherwise: take it when no other edge of the source is taken.
    """
    return After(source if isinstance(source, str) else source.name, when, otherwise)


class StepFunction(Generic[P, R]):
    """A function that is a step. Calling it calls the function."""

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        policy: StepPolicy,
        edges: tuple[After, ...] = (),
        bound: Mapping[str, Any] | None = None,
        join: Join | None = None,
    ) -> None:
        self.function = function
        self.name = name
        self.policy = policy
        self.after = edges
        self.bound = dict(bound or {})
        self.join = join
        self.hints = hints(function)
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def bind(self, name: str, **values: Any) -> StepFunction[P, R]:
        """Return the same function as a step of another name, with some parameters fixed.

        A value that is a step, or a list of steps, stands for its result, or theirs.
        """
        merged = {**self.bound, **values}
        return StepFunction(self.function, name, self.policy, self.after, merged, self.join)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The function's parameters by name."""
        return inspect.signature(self.function).parameters

    def needs(self, steps: Mapping[str, object]) -> dict[str, str | list[str]]:
        """Return for each parameter that takes results which step, or steps, it takes them of."""
        found: dict[str, str | list[str]] = {}
        for name in self.parameters:
            value = self.bound.get(name)
            if isinstance(value, StepFunction):
                found[name] = value.name
            elif isinstance(value, list) and value and all(_is_step(each) for each in value):
                found[name] = [each.name for each in value]
            elif name not in self.bound and name in steps:
                found[name] = name
        return found


def _is_step(value: object) -> bool:
    return isinstance(value, StepFunction)


@overload
def step(function: Callable[P, R]) -> StepFunction[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    after: Sequence[After | StepFunction[Any, Any]] = (),
    join: Join | None = None,
    quorum: int = 1,
    retries: int | None = None,
    timeout: float = 180.0,
    idempotent: bool = True,
    gate: Literal["none", "approve"] = "none",
) -> Callable[[Callable[P, R]], StepFunction[P, R]]: ...
def step(
    function: Callable[P, R] | None = None,
    *,
    name: str | None = None,
    after: Sequence[After | StepFunction[Any, Any]] = (),
    join: Join | None = None,
    quorum: int = 1,
    retries: int | None = None,
    timeout: float = 180.0,
    idempotent: bool = True,
    gate: Literal["none", "approve"] = "none",
) -> Any:
    """Make a step of a function, plain (it then runs in a thread) or async.

    A parameter that has the name of another step takes that step's result; any other one is an
    input of the pipeline. A step starts when all results that it must have are there; with
    ``join="any"``, or where every result has a default, when nothing is pending and one is there.

    Args:
        name: of the step; the function's own by default.
        after: further edges into the step, made by :func:`after`, or steps.
        join, quorum: as of guides.
        retries: further attempts after a failed one; the guides' default when None.
        timeout: seconds. A plain function that does not end cannot be stopped: its thread is left
            behind. Use an async one, or a command, where that matters.
        idempotent: whether running it twice does no harm.
        gate: ``approve`` asks a person before it starts.
    """
    retry = Retry() if retries is None else Retry(attempts=retries + 1)
    policy = StepPolicy(
        quorum=quorum, timeout=timeout, retry=retry, idempotent=idempotent, gate=gate
    )
    edges = tuple(each if isinstance(each, After) else After(each.name) for each in after)

    def make(plain: Callable[P, R]) -> StepFunction[P, R]:
        return StepFunction(plain, name or plain.__name__, policy, edges, None, join)

    return make if function is None else make(function)


@dataclass(frozen=True)
class Pipeline:
    """Steps with their edges, as a plan.

    Args:
        name: of the pipeline.
        steps: in the order in which they are shown.
        version: part of the fingerprint: change it when a recorded result would no longer do.

    Raises:
        GuideError: two steps of one name, an unknown source, or a cycle.
    """

    name: str
    steps: Sequence[StepFunction[Any, Any]]
    version: str = "1"
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        by_name = {each.name: each for each in self.steps}
        if len(by_name) != len(self.steps) or not by_name or by_name.keys() & {START, END, FINISH}:
            raise GuideError(
                f"The steps of {self.name} do not have names of their own.",
                remedy=f"Name each differently, and none {START}, {END} or {FINISH}.",
            )
        object.__setattr__(self, "plan", make_plan(_guide(self.name, self.version, by_name)))

    def parameters(self, **values: Any) -> dict[str, str]:
        """Return inputs in the form that runs take: JSON texts."""
        return {name: json.dumps(encode(value, where=name)) for name, value in values.items()}

    def runner(self, log: RunLog, **options: Any) -> GuideRunner:
        """Return a runner; ``options`` are those of :class:`GuideRunner`."""
        return GuideRunner(self.plan, log=log, executor=PipelineExecutor(self), **options)

    def value(self, step_name: str, result: Mapping[str, Any]) -> Any:
        """Return a step's result as what the function returned."""
        known = next(each for each in self.steps if each.name == step_name)
        return decode(result.get("value"), known.hints.get("return", Any))


class PipelineExecutor:
    """Calls the functions of a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._steps = {each.name: each for each in pipeline.steps}
        self._pipeline = pipeline
        self._when = {
            _condition(each.source, name): each.when
            for name, function in self._steps.items()
            for each in function.after
            if callable(each.when)
        }

    @property
    def name(self) -> str:
        """What results depend on besides the plan."""
        return f"python; version={self._pipeline.version}"

    async def run(self, step: Step, edges: Sequence[Edge], context: StepContext) -> StepOutcome:
        """Call the step's function with the results that it takes.

        Raises:
            StepFailure: the function raised, or returned what cannot be kept.
            DecisionFailure: a condition could not be computed.
        """
        if step.id == FINISH:
            return StepOutcome({"findings": ""}, {edge.name: "enabled" for edge in edges})
        function = self._steps[step.id]
        arguments = self._arguments(function, context)
        shown = {name: encode(value, where=name) for name, value in arguments.items()}
        outcome = await context.calls.call(
            "tool_called",
            {"function": step.id, "arguments": shown},
            partial(_called, function, arguments),
        )
        value = outcome["value"]
        data = {"result": value, step.id: value}
        decided = await decide_edges(edges, data, evaluate=self._evaluate)
        for decision in decided.decisions:
            await context.calls.decided(decision)
        result = {"findings": clip(json.dumps(value), 400), "value": value}
        return StepOutcome(result, decided.edges)

    def _arguments(self, function: StepFunction[Any, Any], context: StepContext) -> dict[str, Any]:
        needs = function.needs(self._steps)
        arguments: dict[str, Any] = {}
        for name, parameter in function.parameters.items():
            known = function.hints.get(name, Any)
            if name in needs:
                source = needs[name]
                found = [self._value(each, context) for each in _listed(source)]
                missing = isinstance(source, str) and source not in context.results
                if not (missing and parameter.default is not inspect.Parameter.empty):
                    arguments[name] = found if isinstance(source, list) else found[0]
            elif name in function.bound:
                arguments[name] = function.bound[name]
            elif name in context.parameters:
                arguments[name] = decode(json.loads(context.parameters[name]), known)
        return arguments

    def _value(self, source: str, context: StepContext) -> Any:
        result = context.results.get(source)
        return None if result is None else self._pipeline.value(source, result)

    def _evaluate(self, text: str, data: Mapping[str, Any]) -> bool:
        when = self._when.get(text)
        if when is None or isinstance(when, str):
            return parse_predicate(text).evaluate(data)
        source = text.removeprefix("when ").partition(" -> ")[0]
        value = self._pipeline.value(source, {"value": data["result"]})
        try:
            return bool(when(value))
        except Exception as error:
            raise StepFailure(
                f"The condition of {text} raised {type(error).__name__}: {error}.",
                remedy="Make it a function of the step's result that does not raise.",
            ) from error


async def _called(function: StepFunction[Any, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    call = partial(function.function, **arguments)
    try:
        if inspect.iscoroutinefunction(function.function):
            value = await call()
        else:
            value = await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    except Exception as error:
        raise StepFailure(
            f"{function.name} raised {type(error).__name__}: {error}",
            remedy="See the error; a test can call the function itself.",
        ) from error
    return {"value": encode(value, function.hints.get("return", Any), where=function.name)}


def _listed(source: str | list[str]) -> list[str]:
    return source if isinstance(source, list) else [source]


# -- functions to a guide ------------------------------------------------------------------------


def _guide(name: str, version: str, steps: Mapping[str, StepFunction[Any, Any]]) -> Guide:
    incoming = {each.name: _incoming(each, steps) for each in steps.values()}
    _check_sources(incoming, steps)
    has_next = {edge.source for edges in incoming.values() for edge in edges}
    roots = [each for each, edges in incoming.items() if not edges]
    leaves = [each for each in steps if each not in has_next]
    last = END if len(leaves) == 1 else FINISH
    made = [Step(START, "Start", edges=tuple(_edge(START, each) for each in roots))]
    for each, function in steps.items():
        out = [
            _conditional(e, target)
            for target, edges in incoming.items()
            for e in edges
            if e.source == each
        ]
        out += [_edge(each, last)] if each in leaves else []
        policy = replace(function.policy, join=function.join or _join(function, steps))
        text = inspect.getdoc(function.function) or ""
        made.append(Step(each, each, text, edges=tuple(out), policy=policy))
    if last == FINISH:
        made.append(Step(FINISH, "Finish", edges=(_edge(FINISH, END),)))
    return Guide(
        name, name, tuple(made), _inputs(steps), f"version {version}", source_format="python"
    )


def _incoming(function: StepFunction[Any, Any], steps: Mapping[str, object]) -> list[After]:
    """Return the edges into a step: the explicit ones, then those of its data."""
    explicit = {edge.source: edge for edge in function.after}
    sources = [each for found in function.needs(steps).values() for each in _listed(found)]
    return [*explicit.values(), *(After(s) for s in dict.fromkeys(sources) if s not in explicit)]


def _check_sources(incoming: Mapping[str, Sequence[After]], steps: Mapping[str, object]) -> None:
    for name, edges in incoming.items():
        for edge in edges:
            if edge.source not in steps:
                raise GuideError(
                    f"{name} comes after {edge.source}, which is not a step of the pipeline.",
                    remedy="Add it to the list of steps.",
                )


def _join(function: StepFunction[Any, Any], steps: Mapping[str, object]) -> Join:
    """All results that a function cannot do without; else whatever is there."""
    needs = function.needs(steps)
    empty = inspect.Parameter.empty
    must = [name for name in needs if function.parameters[name].default is empty]
    return "all" if must and len(must) == len(needs) else "any"


def _edge(source: str, target: str) -> Edge:
    return Edge(f"edge_{source}_{target}", source, target)


def _condition(source: str, target: str) -> str:
    return f"when {source} -> {target}"


def _conditional(edge: After, target: str) -> Edge:
    plain = _edge(edge.source, target)
    if edge.otherwise:
        return replace(plain, otherwise=True)
    if edge.when is None:
        return plain
    text = edge.when if isinstance(edge.when, str) else _condition(edge.source, target)
    return replace(plain, condition=text, predicate=text)


def _inputs(steps: Mapping[str, StepFunction[Any, Any]]) -> tuple[Parameter, ...]:
    """Return the parameters that no step and no bound value gives."""
    found: dict[str, Parameter] = {}
    for function in steps.values():
        needs = function.needs(steps)
        for name, parameter in function.parameters.items():
            if name not in needs and name not in function.bound:
                required = parameter.default is inspect.Parameter.empty
                known = found.get(name)
                needed = required or (known is not None and known.required)
                found[name] = Parameter(name, required=needed)
    return tuple(found.values())
