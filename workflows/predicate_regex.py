"""Regular expressions in bounded time, for ``matches``: sets of states instead of backtracking.

The pattern comes from a guide and the text from telemetry, so neither may hang a run. The
subset: literals, ``.``, classes ``[a-z]`` and ``[^...]``, ``\\d \\w \\s`` and their opposites in
capitals, ``^``, ``$``, groups, ``|``, ``* + ?``, ``{m,n}``. No look-around, back-references or
lazy forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

__all__ = ["LONGEST_PATTERN", "LONGEST_TEXT", "search"]

LONGEST_PATTERN = 200
LONGEST_TEXT = 100_000
MOST_STATES = 1000
MOST_CACHED = 4096

_Test: TypeAlias = Callable[[str], bool]
_CLASSES: dict[str, _Test] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
}
_CONTROL = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(slots=True)
class _State:
    """Consume one character if ``test`` is set; else pass freely, at an anchor's place only."""

    test: _Test | None = None
    anchor: str = ""
    to: list[int] = field(default_factory=list)


def search(pattern: str, text: str) -> bool:
    """Return whether the pattern is found anywhere in the text.

    Raises:
        ValueError: the pattern is not in the subset, or pattern or text is too long.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"the pattern is longer than {LONGEST_PATTERN} characters")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"the text to match is longer than {LONGEST_TEXT} characters")
    return _compiled(pattern).search(text)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> _Machine:
    return _Machine(_Reader(pattern))


class _Reader:
    """Reads a pattern into states; a fragment is (entry, exit), joined by free moves."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.states: list[_State] = []
        self.entry, self.exit = self._choice(0)
        if self.at < len(pattern):
            raise ValueError("the pattern closes a group that it never opened")

    def _new(self, test: _Test | None = None, anchor: str = "") -> int:
        if len(self.states) >= MOST_STATES:
            raise ValueError("the pattern is too large")
        self.states.append(_State(test, anchor))
        return len(self.states) - 1

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _take(self) -> str:
        if self.at >= len(self.pattern):
            raise ValueError("the pattern ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def _choice(self, depth: int) -> tuple[int, int]:
        if depth > 20:
            raise ValueError("the pattern is nested too deeply")
        entry, leave = self._new(), self._new()
        while True:
            first, last = self._sequence(depth)
            self.states[entry].to.append(first)
            self.states[last].to.append(leave)
            if self._peek() != "|":
                return entry, leave
            self._take()

    def _sequence(self, depth: int) -> tuple[int, int]:
        entry = last = self._new()
        while self._peek() not in ("", "|", ")"):
            first, following = self._repeated(depth)
            self.states[last].to.append(first)
            last = following
        return entry, last

    def _repeated(self, depth: int) -> tuple[int, int]:
        start = self.at
        part = self._atom(depth)
        end = self.at
        fewest, most = self._counts()
        if self._peek() and self._peek() in "*+?":
            raise ValueError("the pattern repeats a repetition")
        if (fewest, most) == (1, 1):
            return part
        return self._copies((start, end), depth, fewest, most)

    def _counts(self) -> tuple[int, int | None]:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self._peek() in simple:
            return simple[self._take()]
        if self._peek() != "{":
            return 1, 1
        inside, closed, _ = self.pattern[self.at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not low.isdecimal() or (high and not high.isdecimal()):
            raise ValueError("the pattern has a count that is not {n}, {n,} or {n,m}")
        self.at += len(inside) + 2
        most = int(high) if high else (None if comma else int(low))
        if int(low) > 100 or (most is not None and not int(low) <= most <= 100):
            raise ValueError("the pattern has a count above 100 or out of order")
        return int(low), most

    def _copies(
        self, span: tuple[int, int], depth: int, fewest: int, most: int | None
    ) -> tuple[int, int]:
        entry = last = self._new()
        leave = self._new()
        rounds = max(fewest, 1) if most is None else most
        for index in range(rounds):
            if index >= fewest:
                self.states[last].to.append(leave)
            first, following = self._again(span, depth)
            self.states[last].to.append(first)
            if most is None and index == rounds - 1:
                self.states[following].to.append(first)
            last = following
        self.states[last].to.append(leave)
        return entry, leave

    def _again(self, span: tuple[int, int], depth: int) -> tuple[int, int]:
        resume, self.at = self.at, span[0]
        part = self._atom(depth)
        self.at = resume
        return part

    def _atom(self, depth: int) -> tuple[int, int]:
        char = self._take()
        if char == "(":
            return self._group(depth)
        if char in "*+?{":
            raise ValueError("the pattern repeats nothing")
        state = self._new(anchor=char) if char in "^$" else self._new(test=self._test(char))
        leave = self._new()
        self.states[state].to.append(leave)
        return state, leave

    def _group(self, depth: int) -> tuple[int, int]:
        if self._peek() == "?":
            if self.pattern[self.at : self.at + 2] != "?:":
                raise ValueError("the pattern uses a special group")
            self.at += 2
        part = self._choice(depth + 1)
        if self._take() != ")":
            raise ValueError("the pattern never closes a group")
        return part

    def _test(self, char: str) -> _Test:
        if char == ".":
            return lambda other: other != "\n"
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        return lambda other: other == char

    def _escape(self) -> _Test:
        char = self._take()
        if char.lower() in _CLASSES:
            inside = _CLASSES[char.lower()]
            return inside if char.islower() else lambda other: not inside(other)
        if char.isalnum() and char not in _CONTROL:
            raise ValueError(f"the pattern uses \\{char}, which is not supported")
        return lambda other: other == _CONTROL.get(char, char)

    def _class(self) -> _Test:
        inverted = self._peek() == "^"
        self.at += inverted
        tests: list[_Test] = []
        while self._peek() != "]" or not tests:
            tests.append(self._class_part())
        self._take()
        return lambda other: any(test(other) for test in tests) is not inverted

    def _class_part(self) -> _Test:
        low = self._take()
        if low == "\\":
            return self._escape()
        if self._peek() != "-" or self.pattern[self.at + 1 : self.at + 2] in ("]", ""):
            return lambda other: other == low
        self._take()
        high = self._take()
        if high == "\\" or high < low:
            raise ValueError("the pattern has a class out of order")
        return lambda other: low <= other <= high


class _Machine:
    """Runs the states over a text, remembering where each set of states goes on a character."""

    def __init__(self, reader: _Reader) -> None:
        self._states, self._entry, self._exit = reader.states, reader.entry, reader.exit
        self._moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def search(self, text: str) -> bool:
        restart = self._free({self._entry}, start=False, end=False)
        now = self._free({self._entry}, start=True, end=not text)
        for index, char in enumerate(text):
            if self._exit in now:
                return True
            if index == len(text) - 1:
                now = self._free(self._step(now, char) | {self._entry}, start=False, end=True)
            else:
                now = self._next(now, char, restart)
        return self._exit in now

    def _next(self, now: frozenset[int], char: str, restart: frozenset[int]) -> frozenset[int]:
        key = (now, char)
        if key not in self._moves:
            if len(self._moves) >= MOST_CACHED:
                self._moves.clear()
            self._moves[key] = restart | self._free(self._step(now, char), start=False, end=False)
        return self._moves[key]

    def _step(self, now: frozenset[int], char: str) -> set[int]:
        reached: set[int] = set()
        for index in now:
            state = self._states[index]
            if state.test is not None and state.test(char):
                reached.update(state.to)
        return reached

    def _free(self, reached: set[int], *, start: bool, end: bool) -> frozenset[int]:
        todo, found = list(reached), set(reached)
        while todo:
            state = self._states[todo.pop()]
            open_ = {"": True, "^": start, "$": end}[state.anchor]
            if state.test is None and open_:
                todo += [index for index in state.to if index not in found]
                found.update(state.to)
        return frozenset(found)
