"""What the operators and functions of a condition do. Columns are lists; null is None.

All of them raise TypeError or ValueError for values that do not fit, with a text that completes
the sentence "it cannot be decided: ...".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentrt.workflows.predicate_regex import search

__all__ = ["FUNCTIONS", "Function", "arithmetic", "compare", "negate", "one_value"]

LARGEST = 1 << 128

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "Div": operator.truediv,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language: how many arguments, and whether empty columns are fine."""

    run: Callable[[Sequence[Any]], Any]
    fewest: int = 1
    most: int = 1
    of_nothing: bool = False


def _is_column(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{_kind(value)} stands where a number is needed")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "a column" if _is_column(value) else f"{value!r:.60}"


def one_value(value: Any, where: str) -> Any:
    """Return the value if it is a single one.

    Raises:
        TypeError: it is a column or a table.
    """
    if value is not None and not isinstance(value, str | int | float | bool):
        raise TypeError(f"{_kind(value)} stands in {where}, where one value is needed")
    return value


def arithmetic(name: str, left: Any, right: Any) -> Any:
    """Return the result for two numbers, or number by number for columns.

    Raises:
        TypeError: an operand is not a number.
        ValueError: columns differ in length, or the result is too large.
    """
    if _is_column(left) or _is_column(right):
        pairs = _pairs(left, right)
        return [None if None in pair else arithmetic(name, *pair) for pair in pairs]
    result = _ARITHMETIC[name](_number(left), _number(right))
    if isinstance(result, int) and abs(result) > LARGEST:
        raise ValueError("a number becomes too large")
    return result


def negate(value: Any) -> Any:
    """Return a number, or each number of a column, with the other sign."""
    return arithmetic("Sub", 0, value)


def compare(name: str, left: Any, right: Any) -> Any:
    """Compare two values, or each value of a column with one value (null compares false there).

    Raises:
        TypeError: the kinds differ or have no order, or null is asked to be more or less.
    """
    if name in ("In", "NotIn"):
        return _member(left, right) is (name == "In")
    if _is_column(left) or _is_column(right):
        equal = name in ("Eq", "NotEq")
        return [
            (equal or None not in pair) and compare(name, *pair) for pair in _pairs(left, right)
        ]
    if name not in ("Eq", "NotEq"):
        _ordered(left, right)
    elif left is not None and right is not None:
        _same_kind(left, right)
    return _COMPARE[name](left, right)


def _same_kind(left: Any, right: Any) -> None:
    """A text is never equal to a number: to say so would hide a wrong column or a missing cast."""
    kinds = []
    for value in (one_value(left, "a comparison"), one_value(right, "a comparison")):
        kinds.append("text" if isinstance(value, str) else isinstance(value, bool))
    if kinds[0] != kinds[1]:
        raise TypeError(f"{_kind(left)} and {_kind(right)} are of different kinds")


def _ordered(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        return
    for value in (left, right):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{_kind(left)} and {_kind(right)} have no order")


def _pairs(left: Any, right: Any) -> list[tuple[Any, Any]]:
    if not _is_column(left):
        return [(left, value) for value in right]
    if not _is_column(right):
        return [(value, right) for value in left]
    return list(zip(left, right, strict=True))


def _member(value: Any, among: Any) -> bool:
    if isinstance(among, str):
        if not isinstance(value, str):
            raise TypeError(f"{_kind(value)} cannot be part of a text")
        return value in among
    if not _is_column(among):
        raise TypeError(f"{_kind(among)} is not a column, list or text")
    found = [compare("Eq", one_value(value, "front of `in`"), each) for each in among]
    return any(found)


def _values(args: Sequence[Any]) -> list[Any]:
    """The values to reduce: of one column, or the arguments themselves; nulls left out."""
    values = args[0] if len(args) == 1 and _is_column(args[0]) else args
    return [one_value(value, "a reduction") for value in values if value is not None]


def _extreme(pick: Callable[[list[Any]], Any], args: Sequence[Any]) -> Any:
    values = _values(args)
    for value in values[1:]:
        _ordered(values[0], value)
    return pick(values)


def _sum(args: Sequence[Any]) -> int | float:
    return sum(int(value) if isinstance(value, bool) else _number(value) for value in _values(args))


def _avg(args: Sequence[Any]) -> float:
    values = _values(args)
    return _sum([values]) / len(values)


def _count(args: Sequence[Any]) -> int:
    if not _is_column(args[0]):
        raise TypeError(f"{_kind(args[0])} is not a column")
    return sum(1 for value in args[0] if value is not None and value is not False)


def _len(args: Sequence[Any]) -> int:
    if not isinstance(args[0], Sequence):
        raise TypeError(f"{_kind(args[0])} has no length")
    return len(args[0])


def _truths(args: Sequence[Any]) -> list[bool]:
    if not _is_column(args[0]):
        raise TypeError(f"{_kind(args[0])} is not a column")
    for value in args[0]:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{_kind(value)} stands where true or false is needed")
    return [value is True for value in args[0]]


def _each_text(test: Callable[[str, str], bool], args: Sequence[Any]) -> Any:
    text, other = args
    if _is_column(text):
        return [value is not None and _each_text(test, [value, other]) for value in text]
    if not isinstance(text, str) or not isinstance(other, str):
        raise TypeError(f"{_kind(other if isinstance(text, str) else text)} is not a text")
    return test(text, other)


def _round(args: Sequence[Any]) -> int | float:
    digits = args[1] if len(args) > 1 else 0
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= 12:
        raise ValueError("round takes 0 to 12 digits")
    return round(_number(args[0]), digits)


FUNCTIONS = {
    "min": Function(lambda args: _extreme(min, args), most=20),
    "max": Function(lambda args: _extreme(max, args), most=20),
    "sum": Function(_sum),
    "avg": Function(_avg),
    "count": Function(_count, of_nothing=True),
    "len": Function(_len, of_nothing=True),
    "any": Function(lambda args: any(_truths(args))),
    "all": Function(lambda args: all(_truths(args))),
    "abs": Function(lambda args: abs(_number(args[0]))),
    "round": Function(_round, most=2),
    "contains": Function(lambda args: _each_text(lambda a, b: b in a, args), fewest=2, most=2),
    "matches": Function(lambda args: _each_text(lambda a, b: search(b, a), args), fewest=2, most=2),
}
"""The functions of the language, by name."""
