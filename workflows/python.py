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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio.to_thread

from agentrt.errors import GuideError
from agentrt.workflows.decide import decide_edges
from agentrt.workflows.executor_context import StepContext, StepFailure, StepOutcome
from agentrt.workflows.guide import (
    END,
    START,
    Edge,
    Step,
)
from agentrt.workflows.log import RunLog
from agentrt.workflows.plan import Plan, make_plan
from agentrt.workflows.predicate import parse_predicate
from agentrt.workflows.prompt import clip
from agentrt.workflows.python_plan import FINISH, condition_text, guide_of
from agentrt.workflows.python_steps import After, StepFunction, after, listed, step
from agentrt.workflows.python_values import decode, encode
from agentrt.workflows.run import GuideRunner

__all__ = ["After", "Pipeline", "StepFunction", "after", "step"]


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
        object.__setattr__(self, "plan", make_plan(guide_of(self.name, self.version, by_name)))

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
            condition_text(each.source, name): each.when
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
                found = [self._value(each, context) for each in listed(source)]
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
