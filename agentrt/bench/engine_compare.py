"""Runs a comparison's cases on engines that take turns, and survives the ones that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentrt.bench.engine_cases import Case, Timings
from agentrt.errors import BackendUnavailable

__all__ = ["Asked", "Tell", "run_case"]

Tell = Callable[[str], None]


class Asked(Protocol):
    """Somebody who answers as ``engine_children.Child`` does."""

    def ask(self, do: str, limit: float = ..., **fields: Any) -> dict[str, Any]:
        """Answer, or raise ``BackendUnavailable``."""
        ...


def run_case(
    case: Case,
    engines: Mapping[str, Asked],
    *,
    tell: Tell,
    seed: int = 1,
    together: bool = True,
) -> Timings:
    """Measure a case on engines that have loaded its model.

    An engine that fails is left out from then on, with its reason, and what it gave is dropped.

    Args:
        case: what to run.
        engines: by name.
        tell: told what is going on.
        seed: of the prompts; prefill rounds count on from it, so that none repeats a prompt.
        together: whether all engines' batches fit the memory at once.
    """
    timings = Timings(in_turns=together or case.kind == "prefill")
    present = dict(engines)
    if case.kind == "prefill":
        _prefill(case, present, timings, tell, seed)
    elif together:
        _decode(case, present, timings, tell, seed)
    else:
        for name, engine in engines.items():
            _decode(case, {name: engine}, timings, tell, seed)
    return timings


def _prefill(
    case: Case, engines: dict[str, Asked], timings: Timings, tell: Tell, seed: int
) -> None:
    """Compute prompts, one round unmeasured."""
    for turn in range(case.rounds + 1):
        for name in list(engines):
            answer = _attempt(name, engines, timings, _start(case, seed + turn, 1))
            if answer is None:
                continue
            if turn:
                timings.seconds.setdefault(name, []).append(answer["seconds"])
            timings.first.setdefault(name, []).extend(answer["tokens"])
            _attempt(name, engines, timings, lambda engine: engine.ask("stop"))
        tell(f"{case.name}: round {turn} of {case.rounds}")


def _decode(case: Case, engines: dict[str, Asked], timings: Timings, tell: Tell, seed: int) -> None:
    """Compute the prompts, then decode in rounds, the first one unmeasured."""
    try:
        for name in list(engines):
            tell(f"{case.name}: {name} computes {case.batch * case.context:,} tokens of prompts")
            answer = _attempt(name, engines, timings, _start(case, seed, case.room))
            if answer is not None:
                timings.first[name] = answer["tokens"]
        for turn in range(case.rounds + 1):
            for name in list(engines):
                answer = _attempt(
                    name, engines, timings, lambda engine: engine.ask("steps", count=case.steps)
                )
                if answer is not None and turn:
                    timings.seconds.setdefault(name, []).append(answer["seconds"])
            tell(f"{case.name}: round {turn} of {case.rounds}")
    finally:
        for name in list(engines):
            _attempt(name, engines, timings, lambda engine: engine.ask("stop"))


def _start(case: Case, seed: int, room: int) -> Callable[[Asked], dict[str, Any]]:
    return lambda engine: engine.ask(
        "start", seed=seed, batch=case.batch, context=case.context, room=room
    )


def _attempt(
    name: str,
    engines: dict[str, Asked],
    timings: Timings,
    action: Callable[[Asked], dict[str, Any]],
) -> dict[str, Any] | None:
    """Do something with an engine; where it fails, it leaves."""
    try:
        return action(engines[name])
    except BackendUnavailable as error:
        timings.failed[name] = error.message
        timings.seconds.pop(name, None)
        timings.first.pop(name, None)
        del engines[name]
        return None
