"""Conditions that code decides: values, refusals, bounds, and where they overlap."""

from __future__ import annotations

import contextlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.workflows.predicate import PredicateError, parse_expression, parse_predicate
from agentrt.workflows.predicate_intervals import gaps, intervals, overlap
from agentrt.workflows.predicate_regex import search

DATA = {
    "q": {"rows": 3, "depth": [10, None, 9000], "name": ["a", "bb", "ab"], "none": [None]},
    "empty": {"rows": 0, "depth": []},
    "region": "eu-west",
    "limit": 5,
    "nothing": None,
    "on": True,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("max(q.depth) > 5000", True),
        ("min(q.depth) == 10 and q.rows == 3", True),
        ("sum(q.depth) / 2 == 4505", True),
        ("avg(q.depth) == 4505.0", True),
        ("count(q.depth) == 2 and len(q.depth) == 3", True),
        ("any(q.depth > 5000)", True),
        ("all(q.depth > 5)", False),
        ("count(q.depth * 2 > 100) == 1", True),
        ("count(q.name == 'a') == 1", True),
        ("sum(contains(q.name, 'b')) == 2", True),
        ("any(matches(q.name, '^b+$'))", True),
        ("matches(region, '^eu-(west|east)$')", True),
        ("contains(region, 'us')", False),
        ("'bb' in q.name and 'c' not in q.name", True),
        ("region in ['eu-west', 'eu-east']", True),
        ("'west' in region", True),
        ("1 < limit <= 5 < 6", True),
        ("q.depth[-1] == 9000", True),
        ("abs(-limit) + round(2.567, 1) == 7.6", True),
        ("max(1, limit, 3) == 5", True),
        ("not (limit > 5 or limit < 0)", True),
        ("limit % 3 == 2 and 7 // 2 == 3", True),
        ("empty.rows > 0 and max(empty.depth) > 1", False),
        ("empty.rows == 0 or max(empty.depth) > 1", True),
        ("count(empty.depth) == 0", True),
        ("nothing == null and on == true", True),
        ("on", True),
        ("+limit == 5", True),
    ],
)
def test_values(text, value):
    assert parse_predicate(text).evaluate(DATA) is value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gone > 1", "`gone`"),
        ("q.gone > 1", "Known at this place: depth, name, none, rows"),
        ("max(empty.depth) > 1", "`empty.depth`, which has no values"),
        ("any(empty.depth > 1)", "no values"),
        ("1 in empty.depth", "no values"),
        ("max(q.none) > 1", "no values"),
        ("empty.depth[0] == 1", "no values"),
        ("q.depth > 5", "neither true nor false"),
        ("limit", "neither true nor false"),
        ("limit and on", "true or false is needed"),
        ("nothing > 1", "no order"),
        ("region > 1", "no order"),
        ("region + 1 == 2", "number is needed"),
        ("on + 1 == 2", "number is needed"),
        ("limit / 0 == 1", "division by zero"),
        ("q.depth[9] == 1", "out of range"),
        ("contains(limit, 'a')", "not a text"),
        ("sum(q.name) > 1", "number is needed"),
        ("max(1, 'a') == 1", "no order"),
        ("q == 1", "stands"),
        ("q == 'a'", "one value is needed"),
        ("region == 5", "different kinds"),
        ("on == 1", "different kinds"),
        ("any(q.depth == '10')", "different kinds"),
        ("10 in q.name", "different kinds"),
        ("count(limit) == 1", "not a column"),
        ("any(q.depth)", "true or false is needed"),
        ("1 < q.depth < 9", "true or false is needed"),
        ("round(limit, 99) == 5", "digits"),
        ("limit in limit", "not a column"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_raises(text, words):
    with pytest.raises(PredicateError) as caught:
        parse_predicate(text).evaluate(DATA)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a >",
        "__import__('os')",
        "().__class__",
        "'a'.join",
        "a.b()",
        "max.x(a)",
        "2 ** 9 > 1",
        "1 << 99 > 1",
        "lambda: 1",
        "[x for x in a]",
        "a if b else c",
        "a := 1",
        "f'{a}'",
        "{'a': 1}",
        "a[b]",
        "a[1:2]",
        "a is b",
        "b'x' == a",
        "1j == a",
        "... == a",
        "max()",
        "max(*a)",
        "max(a, key=b)",
        "matches(a, b)",
        "matches(a, '(')",
        "await a",
        "~a == 1",
        "a @ b",
        "(" * 300,
        "-" * 1500 + "1",
        "not " * 300 + "a",
        "a " + "and a " * 400,
        "+".join(["1"] * 400) + " > 1",
        "x" * 3000,
        "a\x00b",
    ],
)
def test_what_is_not_in_the_language_is_refused(text):
    with pytest.raises(PredicateError) as caught:
        parse_predicate(text)
    assert caught.value.remedy
    assert len(str(caught.value)) < 500


def test_names_are_dotted_as_written():
    assert parse_predicate("max(q.depth) > limit or true").names == {"q.depth", "limit"}
    assert parse_expression("queues.name").value({"queues": {"name": ["a"]}}) == ["a"]


def test_numbers_stay_bounded():
    huge = "*".join(["9999999999999999999999"] * 8)
    with pytest.raises(PredicateError, match="too large"):
        parse_predicate(f"{huge} > 1").evaluate({})


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        predicate = parse_predicate(text)
    except PredicateError:
        return
    with contextlib.suppress(PredicateError):
        assert predicate.evaluate(DATA) in (True, False)


_SIMPLE = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "^", "$", r"\d", r"\w", "c", "(ab|c)"])
_PATTERNS = st.lists(
    st.tuples(_SIMPLE, st.sampled_from(["", "*", "+", "?", "{2}", "{1,2}", "{0,1}", "{2,}"])),
    max_size=5,
).map(lambda parts: "".join(a if a in "^$" else a + b for a, b in parts))


@given(_PATTERNS, st.text(alphabet="abc1 ", max_size=8))
def test_patterns_agree_with_the_standard_library(pattern, text):
    assert search(pattern, text) is (re.search(pattern, text) is not None)


@given(_PATTERNS, _PATTERNS, st.text(alphabet="abc", max_size=6))
def test_choices_agree_with_the_standard_library(left, right, text):
    pattern = f"({left}|{right})c|{right}"
    assert search(pattern, text) is (re.search(pattern, text) is not None)


def test_patterns_that_blow_up_elsewhere_do_not_here():
    assert not search("(a+)+$", "a" * 5000 + "b")
    assert not search("(a|a)*(a|aa)*c", "a" * 5000)


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a**", "a{3,1}", "a{1000}", "*a", "[a", "[b-a]", "(?=a)", r"\1", r"a\b", "a{x}",
     "(((a{90}){90}){90})", "a" * 300, "\\", "(" * 30 + ")" * 30],
)  # fmt: skip
def test_patterns_outside_the_subset_are_refused(pattern):
    with pytest.raises(ValueError, match="pattern"):
        search(pattern, "aaa")


def _range(text):
    return intervals(parse_predicate(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("max(q.d) > 5", ["(5, inf)"]),
        ("5 >= q.rows", ["(-inf, 5]"]),
        ("5 < q.rows <= 10", ["(5, 10]"]),
        ("q.rows != 3", ["(-inf, 3)", "(3, inf)"]),
        ("not q.rows == 3", ["(-inf, 3)", "(3, inf)"]),
        ("x > 1 and x < 0", []),
        ("x >= 1 or x < 0 or x == 0", ["(-inf, 0]", "[1, inf)"]),
        ("x < -2.5", ["(-inf, -2.5)"]),
    ],
)
def test_intervals(text, shown):
    found = _range(text)
    assert found is not None
    assert [str(each) for each in found.intervals] == shown


@pytest.mark.parametrize(
    "text", ["x > y", "x > 1 and y > 1", "x == 'a'", "contains(x, 'a')", "1 < 2", "x in [1]"]
)
def test_other_conditions_have_no_intervals(text):
    assert _range(text) is None


def test_overlap_and_gaps():
    low, high = _range("x < 5"), _range("x >= 4")
    assert str(overlap(low, high)) == "[4, 5)"
    assert overlap(low, _range("x >= 5")) is None
    assert overlap(low, _range("y < 5")) is None
    assert gaps([low, high]) == ()
    assert [str(gap) for gap in gaps([low, _range("x > 5")])] == ["[5, 5]"]


_TERMS = st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.integers(-3, 3))


@st.composite
def _conditions(draw, depth=2):
    if not depth or draw(st.booleans()):
        operator, number = draw(_TERMS)
        return f"x {operator} {number}" if draw(st.booleans()) else f"{number} {operator} x"
    left, right = draw(_conditions(depth - 1)), draw(_conditions(depth - 1))
    return draw(st.sampled_from([f"({left} and {right})", f"({left} or {right})", f"not ({left})"]))


@given(_conditions(), _conditions())
def test_intervals_say_what_evaluation_says(one, other):
    first, second = _range(one), _range(other)
    points = [n / 2 for n in range(-9, 10)]
    both = uncovered = False
    for x in points:
        holds = [parse_predicate(text).evaluate({"x": x}) for text in (one, other)]
        for found, value in zip((first, second), holds, strict=True):
            assert any(_inside(x, each) for each in found.intervals) is value
        both, uncovered = both or all(holds), uncovered or not any(holds)
    assert (overlap(first, second) is not None) is both
    assert bool(gaps([first, second])) is uncovered


def _inside(x, interval):
    above = x > interval.low or (x == interval.low and not interval.low_open)
    below = x < interval.high or (x == interval.high and not interval.high_open)
    return above and below and math.isfinite(x)
