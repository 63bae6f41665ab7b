"""Whether conditions that code decides leave cases open, overlap, or can never hold.

Conditions are read into truth functions over their terms: a term is whatever is compared with a
constant, and everything else is a free truth value. Between the constants nothing changes, so a
few sample points decide for all values.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from agentrt.workflows.predicate import PredicateError, parse_predicate

__all__ = ["Case", "Conditions"]

MOST_POINTS = 50_000

Value: TypeAlias = float | str | bool
Case: TypeAlias = Mapping[str, Value]
"""A sample: the value of each term."""

_FLIP: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}
_OTHER = "\0another text"


@dataclass(slots=True)
class Conditions:
    """The conditions of one step, by the texts between backticks that can be read."""

    texts: Sequence[str]
    trees: list[ast.expr] = field(default_factory=list)
    constants: dict[str, set[Value]] = field(default_factory=dict)
    terms: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for text in self.texts:
            parse_predicate(text)
            tree = ast.parse(text.strip(), mode="eval").body
            self.trees.append(tree)
            terms: set[str] = set()
            for term, constant in _terms(tree):
                terms.add(term)
                self.constants.setdefault(term, set()).add(constant)
            self.terms.append(terms)

    def uncovered(self) -> Case | None:
        """A case in which none holds, or None."""
        return next((c for c in self._cases() if not any(self._held(c))), None)

    def impossible(self) -> list[int]:
        """Which of them hold in no case."""
        open_ones = set(range(len(self.trees)))
        for case in self._cases():
            open_ones -= {at for at, held in enumerate(self._held(case)) if held}
            if not open_ones:
                break
        return sorted(open_ones)

    def overlaps(self) -> Iterator[tuple[int, int, Case]]:
        """Pairs over a common term that hold at once, each with such a case."""
        open_ones = {
            pair
            for pair in itertools.combinations(range(len(self.trees)), 2)
            if self.terms[pair[0]] & self.terms[pair[1]]
        }
        for case in self._cases():
            if not open_ones:
                return
            held = self._held(case)
            for pair in sorted(pair for pair in open_ones if held[pair[0]] and held[pair[1]]):
                open_ones.discard(pair)
                yield *pair, case

    def _held(self, case: Case) -> list[bool]:
        return [_truth(tree, case) for tree in self.trees]

    def _cases(self) -> Iterator[dict[str, Value]]:
        names = list(self.constants)
        points = [_points(name, self.constants[name]) for name in names]
        for values in itertools.islice(itertools.product(*points), MOST_POINTS):
            yield dict(zip(names, values, strict=True))


def readable(text: str) -> str:
    """What is wrong with a condition between backticks; empty if it can be read."""
    try:
        parse_predicate(text)
    except PredicateError as error:
        return error.message
    return ""


def shown(case: Case) -> str:
    """A case as a text for a message."""
    return ", ".join(
        f"{term} is {'something else' if value == _OTHER else value}"
        for term, value in case.items()
    )


def _points(term: str, constants: set[Value]) -> list[Value]:
    """Values of a term: each constant, one between neighbours, one beyond each end."""
    numbers = sorted(value for value in constants if _is_number(value))
    texts = sorted(str(value) for value in constants if isinstance(value, str))
    if not numbers and not texts:
        return [True, False]
    points: list[Value] = [*texts, _OTHER] if texts else []
    if numbers:
        ordered = [float(value) for value in numbers]
        between = [(low + high) / 2 for low, high in itertools.pairwise(ordered)]
        points += _counted(term, [ordered[0] - 1, *ordered, *between, ordered[-1] + 1])
    return points


def _counted(term: str, values: list[float]) -> list[Value]:
    """Without the values that a count cannot have."""
    counts = term.endswith(".rows") or term.startswith(("count(", "len("))
    kept = [v for v in sorted(values) if not counts or (v >= 0 and v.is_integer())]
    return list(kept)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _terms(tree: ast.expr) -> Iterator[tuple[str, Value]]:
    match tree:
        case ast.BoolOp(values=values):
            for value in values:
                yield from _terms(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield from _terms(operand)
        case ast.Compare():
            for part in _atoms(tree):
                yield from _atom_terms(part)
        case ast.Constant():
            return
        case _:
            yield ast.unparse(tree), True


def _atoms(tree: ast.Compare) -> Iterator[tuple[ast.expr, ast.cmpop, ast.expr]]:
    left = tree.left
    for operator, right in zip(tree.ops, tree.comparators, strict=True):
        yield left, operator, right
        left = right


def _atom_terms(atom: tuple[ast.expr, ast.cmpop, ast.expr]) -> Iterator[tuple[str, Value]]:
    normal = _normal(*atom)
    if normal is None:
        yield _opaque(*atom), True
        return
    for constant in normal[2]:
        yield normal[0], constant


def _opaque(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> str:
    return ast.unparse(ast.Compare(left, [operator], [right]))


def _normal(
    left: ast.expr, operator: ast.cmpop, right: ast.expr
) -> tuple[str, type[ast.cmpop], list[Value]] | None:
    """(term, operator, constants) of a comparison with constants; None for any other."""
    values = _constants(right)
    if values is not None and _constants(left) is None:
        return ast.unparse(left), type(operator), values
    values = _constants(left)
    if values is not None and _constants(right) is None and type(operator) in _FLIP:
        return ast.unparse(right), _FLIP[type(operator)], values
    return None


def _constants(node: ast.expr) -> list[Value] | None:
    match node:
        case ast.Constant(value=str() | int() | float() as value) if not isinstance(value, bool):
            return [value]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return [-value]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            inner = [_constants(part) for part in parts]
            return [v[0] for v in inner if v] if all(v and len(v) == 1 for v in inner) else None
        case _:
            return None


def _truth(tree: ast.expr, case: Case) -> bool:
    match tree:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_truth(value, case) for value in values)
        case ast.BoolOp(values=values):
            return any(_truth(value, case) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _truth(operand, case)
        case ast.Compare():
            return all(_atom_truth(atom, case) for atom in _atoms(tree))
        case ast.Constant(value=value):
            return bool(value)
        case _:
            return bool(case[ast.unparse(tree)])


def _atom_truth(atom: tuple[ast.expr, ast.cmpop, ast.expr], case: Case) -> bool:
    normal = _normal(*atom)
    if normal is None:
        return bool(case[_opaque(*atom)])
    value, operator, constants = case[normal[0]], normal[1], normal[2]
    if operator in (ast.In, ast.Eq):
        return value in constants
    if operator in (ast.NotIn, ast.NotEq):
        return value not in constants
    bound = constants[0]
    if isinstance(value, str) or isinstance(bound, str):
        # Texts are only told apart here; what is ordered by them stays undecided, as unequal.
        return False
    return _ordered(operator, float(value), float(bound))


def _ordered(operator: type[ast.cmpop], value: float, bound: float) -> bool:
    if operator is ast.Lt:
        return value < bound
    if operator is ast.LtE:
        return value <= bound
    return value > bound if operator is ast.Gt else value >= bound
