"""Conditions that code can decide: a small expression language over a step's data.

The text is read by Python's own parser and then interpreted here, node by node, from an allow-list:
nothing of Python can be reached from it, and sizes are bounded. A name is a parameter
(``region``), a query's row count (``queue_depth.rows``) or one of its columns, a list of values
(``queue_depth.depth``). Comparing a column with a value compares each of its values, for ``any``,
``all``, ``count`` and ``sum``. What cannot be decided raises; it is never taken for false.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrt.errors import GuideError
from agentrt.workflows.predicate_functions import FUNCTIONS, arithmetic, compare, negate, one_value

__all__ = ["Expression", "Predicate", "PredicateError", "parse_expression", "parse_predicate"]

LONGEST_TEXT = 2000
MOST_NODES = 300
DEEPEST = 40

_LITERALS = (str, int, float, bool, type(None))
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_ALLOWED = (
    ast.BoolOp | ast.And | ast.Or | ast.UnaryOp | ast.Not | ast.USub | ast.UAdd | ast.BinOp
    | ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Mod | ast.Compare | ast.Eq
    | ast.NotEq | ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.In | ast.NotIn | ast.Call | ast.Name
    | ast.Load | ast.Attribute | ast.Subscript | ast.Constant | ast.List | ast.Tuple
)  # fmt: skip


class PredicateError(GuideError):
    """A condition is not in the language, or the data at hand cannot decide it."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression. ``names`` are the names it reads, dotted as they are written."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def value(self, data: Mapping[str, Any]) -> Any:
        """Return the value: a text, a number, a truth value, null, or a list of these.

        Raises:
            PredicateError: a name is missing, a column is empty, or the kinds do not fit.
        """
        try:
            return _value(self.tree, data)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError, IndexError) as error:
            raise PredicateError(
                f"`{self.text}` cannot be decided: {error}.",
                remedy="Check the names and the kinds of values in the condition.",
            ) from error


@dataclass(frozen=True, slots=True)
class Predicate(Expression):
    """An expression whose value is true or false."""

    def evaluate(self, data: Mapping[str, Any]) -> bool:
        """Decide it. ``data`` maps names to values, and tables to mappings of columns.

        Raises:
            PredicateError: the data cannot decide it, or the value is not a truth value.
        """
        value = self.value(data)
        if not isinstance(value, bool):
            kind = "a column" if isinstance(value, Sequence) and not isinstance(value, str) else ""
            raise PredicateError(
                f"`{self.text}` is {kind or repr(value)}, neither true nor false.",
                remedy="Compare it with a value; use any(...) or all(...) over a column.",
            )
        return value


def parse_predicate(text: str) -> Predicate:
    """Check a condition.

    Raises:
        PredicateError: it is not in the language, or too long.
    """
    tree, names = _checked(text)
    return Predicate(text.strip(), tree, names)


def parse_expression(text: str) -> Expression:
    """Check an expression of any kind of value, such as the column that ``for each`` names.

    Raises:
        PredicateError: it is not in the language, or too long.
    """
    tree, names = _checked(text)
    return Expression(text.strip(), tree, names)


def _checked(text: str) -> tuple[ast.expr, frozenset[str]]:
    if len(text) > LONGEST_TEXT:
        raise _refused(text, f"it is longer than {LONGEST_TEXT} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise _refused(text, f"it cannot be read ({error.msg})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, "it is nested too deeply or holds a bad character") from error
    names: set[str] = set()
    _check(tree, text, names)
    return tree, frozenset(names)


def _check(tree: ast.expr, text: str, names: set[str]) -> None:
    # Iterative, so that a deep tree is refused by count and not by Python's own stack.
    todo: list[tuple[ast.AST, int]] = [(tree, 1)]
    seen = 0
    while todo:
        node, depth = todo.pop()
        seen += 1
        if seen > MOST_NODES or depth > DEEPEST:
            raise _refused(text, "it is too large")
        if not isinstance(node, _ALLOWED):
            raise _refused(text, f"{type(node).__name__} is not in the language")
        todo += [(child, depth + 1) for child in _children(node, text, names)]


def _children(node: ast.AST, text: str, names: set[str]) -> list[ast.AST]:
    match node:
        case ast.Call():
            return _check_call(node, text)
        case ast.Name() | ast.Attribute():
            name = _dotted(node)
            if name is None:
                raise _refused(text, "only a plain name may stand before a dot")
            if name not in _WORDS:
                names.add(name)
            return []
        case ast.Constant(value=value):
            if not isinstance(value, _LITERALS):
                raise _refused(text, f"{value!r} is not a text, number, true, false or null")
            return []
        case ast.Subscript(value=inner, slice=index):
            if _integer(index) is None:
                raise _refused(text, "an index must be a whole number")
            return [inner]
        case _:
            return list(ast.iter_child_nodes(node))


def _check_call(node: ast.Call, text: str) -> list[ast.AST]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    function = FUNCTIONS.get(name)
    if function is None:
        known = ", ".join(FUNCTIONS)
        raise _refused(text, f"there is no such function as {name or 'that'}", f"Use: {known}.")
    if node.keywords or any(isinstance(each, ast.Starred) for each in node.args):
        raise _refused(text, f"{name} takes plain arguments only")
    if not function.fewest <= len(node.args) <= function.most:
        raise _refused(text, f"{name} takes {function.fewest} to {function.most} arguments")
    if name == "matches":
        _check_pattern(node.args[1], text)
    return list(node.args)


def _check_pattern(pattern: ast.expr, text: str) -> None:
    if not isinstance(pattern, ast.Constant) or not isinstance(pattern.value, str):
        raise _refused(text, "the pattern of matches must be a quoted text")
    try:
        FUNCTIONS["matches"].run(["", pattern.value])
    except ValueError as error:
        raise _refused(text, str(error)) from error


def _refused(text: str, why: str, remedy: str = "") -> PredicateError:
    shown = text.strip() if len(text) <= 120 else f"{text.strip()[:117]}..."
    return PredicateError(
        f"`{shown}` is not a condition that code can decide: {why}.",
        remedy=remedy or "See docs/guide-format.md for the language, or write it as prose.",
    )


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else None
    return None


def _integer(node: ast.AST) -> int | None:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case _:
            return None


def _value(node: ast.expr, data: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            return _look_up(_dotted(node) or "", data)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [one_value(_value(part, data), "a list") for part in parts]
        case ast.BoolOp():
            return _logic(node, data)
        case ast.UnaryOp():
            return _unary(node, data)
        case ast.BinOp(left=left, op=operator, right=right):
            return arithmetic(type(operator).__name__, _value(left, data), _value(right, data))
        case ast.Compare():
            return _comparison(node, data)
        case ast.Subscript(value=inner, slice=index):
            return _column(inner, data)[_integer(index) or 0]
        case ast.Call(func=ast.Name(id=name), args=args):
            return _call(name, args, data)
    raise TypeError(f"{type(node).__name__} is not in the language")


def _look_up(name: str, data: Mapping[str, Any]) -> Any:
    if name in _WORDS and name not in data:
        return _WORDS[name]
    value: Any = data
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = sorted(str(key) for key in value) if isinstance(value, Mapping) else []
            raise PredicateError(
                f"The condition reads `{name}`, which is not there.",
                remedy=f"Known at this place: {', '.join(known) or 'nothing'}.",
            )
        value = value[part]
    return value


def _logic(node: ast.BoolOp, data: Mapping[str, Any]) -> bool:
    stop = isinstance(node.op, ast.Or)
    for part in node.values:
        if _truth(_value(part, data)) is stop:
            return stop
    return not stop


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{type(value).__name__} stands where true or false is needed")
    return value


def _unary(node: ast.UnaryOp, data: Mapping[str, Any]) -> Any:
    value = _value(node.operand, data)
    if isinstance(node.op, ast.Not):
        return not _truth(value)
    return negate(value) if isinstance(node.op, ast.USub) else arithmetic("Add", value, 0)


def _comparison(node: ast.Compare, data: Mapping[str, Any]) -> Any:
    left = _value(node.left, data)
    results = []
    for operator, right_node in zip(node.ops, node.comparators, strict=True):
        if isinstance(operator, ast.In | ast.NotIn):
            right: Any = _column(right_node, data)
        else:
            right = _value(right_node, data)
        results.append(compare(type(operator).__name__, left, right))
        left = right
    if len(results) == 1:
        return results[0]
    return all(_truth(result) for result in results)


def _column(node: ast.expr, data: Mapping[str, Any]) -> Any:
    """The value of a node that must not be an empty column, with the name in the message."""
    value = _value(node, data)
    if isinstance(value, Sequence) and not isinstance(value, str) and not _some(value):
        name = ast.unparse(node)
        table = name.partition(".")[0]
        raise PredicateError(
            f"The condition reads `{name}`, which has no values.",
            remedy=f"Ask for them first: `{table}.rows > 0 and ...`, or count({name}).",
        )
    return value


def _some(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values)


def _call(name: str, args: Sequence[ast.expr], data: Mapping[str, Any]) -> Any:
    function = FUNCTIONS[name]
    read = _value if function.of_nothing else lambda node, data: _column(node, data)
    return function.run([read(arg, data) for arg in args])
