"""Functions as steps: what ``@step`` makes, and the edges between them. Nothing here runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, overload

from agentrt.workflows.guide import Join, Retry, StepPolicy
from agentrt.workflows.python_values import hints

__all__ = ["After", "StepFunction", "after", "listed", "step"]

P = ParamSpec("P")
R = TypeVar("R")
When: TypeAlias = str | Callable[[Any], bool] | None


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


def listed(source: str | list[str]) -> list[str]:
    """Return one name or several as several."""
    return source if isinstance(source, list) else [source]
