"""Questions to a person: approvals, decisions that code and model cannot take, repeated steps.

A question has a stable id, a closed set of answers, a default, and a time after which the default
is taken. It is part of the run's log, so it outlives the process that asked it and can be answered
from another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import anyio
import anyio.to_thread

from agentrt.errors import InvalidRequest

__all__ = ["CallbackPerson", "Nobody", "Person", "Question", "ScriptedPerson", "check_answer"]

MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked. ``gate`` is its id within the run; ``expires_in`` seconds."""

    gate: str
    step: str
    text: str
    options: tuple[str, ...]
    default: str
    expires_in: float | None


class Person(Protocol):
    """Somebody who may answer."""

    async def ask(self, question: Question) -> str | None:
        """Return the answer, or None for nobody who answers here; waits as long as it takes.

        The caller bounds the wait and cancels it when the answer comes from elsewhere.
        """


class Nobody:
    """An unattended run: answers come from outside the process, or are the default."""

    async def ask(self, question: Question) -> str | None:
        """Return None at once."""
        return None


class ScriptedPerson:
    """Answers by gate id; for tests and for runs whose answers are known."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.asked: list[Question] = []
        self._answers = dict(answers)

    async def ask(self, question: Question) -> str | None:
        """Return the answer that was prepared for the gate, or None."""
        self.asked.append(question)
        return self._answers.get(question.gate)


class CallbackPerson:
    """Asks through a plain function, in a thread: a prompt on a terminal, say.

    One question is asked at a time. An answer that is not among the options is asked for again, at
    most three times in all. A function that still waits when the run goes on without it is left to
    end by itself.
    """

    def __init__(self, ask: Callable[[Question], str]) -> None:
        self._ask = ask
        self._one = anyio.Lock()

    async def ask(self, question: Question) -> str | None:
        """Return an answer among the options, or None when there was none."""
        async with self._one:
            for _ in range(MOST_TRIES):
                answer = await anyio.to_thread.run_sync(self._ask, question, abandon_on_cancel=True)
                if answer in question.options:
                    return answer
        return None


def check_answer(gate: str, answer: str, options: tuple[str, ...]) -> str:
    """Return the answer.

    Raises:
        InvalidRequest: it is not among the options.
    """
    if options and answer not in options:
        raise InvalidRequest(
            f"{answer!r} is not an answer to {gate}.", remedy=f"Answer one of {list(options)}."
        )
    return answer
