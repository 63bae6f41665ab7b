"""The parser: each field alone, several together, and anything at all."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.hints import FIELDS, read_hints
from agentrt.hints.document import MEANINGS
from agentrt.hints.read import OBJECTS
from agentrt.hints.values import (
    MAX_TTL,
    cache_control,
    duration,
    flag,
    name,
    number,
    retention_directives,
    reuse_hint,
    whole,
)
from agentrt.identity import identify

NOW = 1000.0
HUGE = 10**4000

# What to write into a field of each target, and what the identity then says.
SAMPLES: dict[str, tuple[Any, str, Any]] = {
    "program": ("X", "program", "X"),
    "parent": ("X", "parent", "X"),
    "member": ("X", "member", "X"),
    "parent_member": ("X", "parent_member", "X"),
    "agent": ("X", "hints.agent", "X"),
    "step": ("X", "hints.step", "X"),
    "next_tool": ("bash:test", "next_tool", "bash:test"),
    "last_tool": ("git", "hints.last_tool", "git"),
    "last": ("true", "last", True),
    "priority": ("7", "hints.priority", 7),
    "turn_deadline": (60, "hints.turn_deadline", NOW + 60),
    "program_deadline": (600.5, "hints.program_deadline", NOW + 600.5),
    "output_tokens": (250, "hints.output_tokens", 250),
    "gap_seconds": (12, "hints.gap_seconds", 12.0),
    "remaining_turns": (3, "hints.remaining_turns", 3),
    "keep_seconds": ("20", "hints.keep_seconds", 20.0),
    "none": ("1", "last", False),
}
# Fields that are written in their own way.
SPECIAL: dict[str, tuple[Any, Any]] = {
    "body:metadata.user_id": ('{"session_id": "X"}', "X"),
    "header:x-codex-turn-metadata": ('{"agent_name": "X"}', "X"),
    "body:priority": (-7, 7),
    "body:agent_hints.expected_tool_duration_ms": (12_000, 12.0),
    "body:agent_hints.cache_ttl_ms": (20_000, 20.0),
    "body:agent_hints.reuse_hint": ("discard", 0.0),
    "body:agent_hint.cache_control": ({"type": "ephemeral", "ttl": 20}, 20.0),
    "body:nvext.cache_control": ({"type": "ephemeral", "ttl": "20s"}, 20.0),
    "body:cache_control": ({"type": "ephemeral"}, 300.0),
    "body:retention_directives": ([{"duration": 5}, {"start": 0, "duration": 20}], 20.0),
}
# What stands there is for others, and no hint at all unless it holds one.
FOR_OTHERS = ("body:metadata.user_id", "header:x-codex-turn-metadata")


def placed(label: str, value: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a body and headers with ``value`` at the place that ``label`` names."""
    place, _, path = label.partition(":")
    if place == "header":
        return {}, {path: value}
    inner: Any = value
    for key in reversed(path.split(".")):
        inner = {key: inner}
    return inner, {}


def said(body: dict[str, Any], headers: dict[str, str], attribute: str) -> Any:
    found: Any = identify(body, headers, NOW)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


class TestEachField:
    @pytest.mark.parametrize("row", FIELDS, ids=lambda row: row.label)
    def test_alone(self, row: Any) -> None:
        value, attribute, expected = SAMPLES[row.target]
        value, expected = SPECIAL.get(row.label, (value, expected))
        body, headers = placed(row.label, value)
        assert said(body, headers, attribute) == expected
        outcome = "unsupported" if row.target == "none" else "used"
        (note,) = read_hints(body, headers).notes
        assert (note.label, note.outcome) == (row.label, outcome)

    @pytest.mark.parametrize(
        "row", [row for row in FIELDS if row.label not in FOR_OTHERS], ids=lambda row: row.label
    )
    def test_malformed_is_noted_and_says_nothing(self, row: Any) -> None:
        bad = ["x", [[]]] if row.label.startswith("body:") else "\n"
        body, headers = placed(row.label, bad)
        who = identify(body, headers, NOW)
        assert who.malformed == (row.label,)
        assert who == type(who)(notes=who.notes)

    def test_every_target_is_tried_and_explained(self) -> None:
        targets = {row.target for row in FIELDS}
        assert targets == set(SAMPLES) == set(MEANINGS)
        assert len({row.label for row in FIELDS}) == len(FIELDS)

    @pytest.mark.parametrize("target", sorted({row.target for row in FIELDS} - {"last", "none"}))
    def test_precedence_is_the_order_of_rows(self, target: str) -> None:
        labels = [row.label for row in FIELDS if row.target == target]
        for first, second in itertools.pairwise(labels):
            value = SAMPLES[target][0]
            one = placed(first, SPECIAL.get(first, (value, None))[0])
            two = placed(second, SPECIAL.get(second, (value, None))[0])
            readings = read_hints(merged(one[0], two[0]), {**one[1], **two[1]})
            outcomes = {note.label: note.outcome for note in readings.notes}
            assert outcomes == {first: "used", second: "overridden"}


def merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    result = dict(one)
    for key, value in two.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class TestValues:
    @pytest.mark.parametrize(
        ("value", "seconds", "clamped"),
        [
            (0, 0.0, False),
            ("5m", 300.0, False),
            ("1H", 3600.0, False),
            (" 500ms ", 0.5, False),
            ("2.5", 2.5, False),
            (3600.1, MAX_TTL, True),
            ("2h", MAX_TTL, True),
            (-1, 0.0, True),
            (HUGE, MAX_TTL, True),
            (-HUGE, 0.0, True),
        ],
    )
    def test_times_to_live(self, value: Any, seconds: float, clamped: bool) -> None:
        assert duration(value) == (seconds, clamped)

    @pytest.mark.parametrize(
        "value", [None, True, math.nan, math.inf, -math.inf, "nan", "inf", "", "m", "5 d", [], {}]
    )
    def test_what_is_no_time(self, value: Any) -> None:
        assert duration(value) is None

    def test_numbers_are_clamped_after_they_are_scaled(self) -> None:
        assert number(0.0, 10.0, 0.001)(5_000) == (5.0, False)
        assert number(0.0, 10.0, 0.001)(50_000) == (10.0, True)
        assert whole(-100, 100, -1)(3) == (-3, False)
        assert whole(-100, 100, -1)(HUGE) == (-100, True)
        assert whole(1, 100)(1.9) == (1, False)
        assert whole(1, 100)(0) == (1, True)
        assert whole(1, 100)("1" * 40) is None

    def test_cache_control(self) -> None:
        assert cache_control({"type": "ephemeral", "ttl": None}) == (300.0, False)
        assert cache_control({"type": "ephemeral", "ttl": 10**9}) == (MAX_TTL, True)
        assert cache_control({"type": "forever"}) is None
        assert cache_control({"type": "ephemeral", "ttl": "soon"}) is None

    def test_others(self) -> None:
        assert name(12) == ("12", False)
        assert name(10**5000) is None  # it has no text: Python refuses to write it out
        assert name("x" * 257) is None
        assert flag(HUGE) is None
        assert reuse_hint("keep") == (None, False)
        assert reuse_hint("maybe") is None
        assert retention_directives([{"duration": None}]) == (None, False)
        assert retention_directives([{"duration": 3}, 7]) is None
        assert retention_directives([]) is None


class TestCommands:
    def test_unknown_actions_are_reported_under_their_name(self) -> None:
        rows = [
            {"action_id": "1", "action_type": "kv.fetch", "action_version": "1.0", "payload": {}},
            {"action_id": "2", "action_type": "kv.pin"},
        ]
        body = {"kv_hints": {"protocol_version": "0.1", "message_id": "m", "actions": rows}}
        found = [(note.label, note.outcome) for note in read_hints(body, {}).notes]
        assert found == [
            ("body:kv_hints:kv.fetch", "unsupported"),
            ("body:kv_hints:kv.pin", "unsupported"),
        ]

    @pytest.mark.parametrize(
        ("envelope", "label"),
        [
            ([], "body:kv_hints"),
            ({"protocol_version": 0.1}, "body:kv_hints.protocol_version"),
            ({"protocol_version": "0.1", "actions": {}}, "body:kv_hints"),
            ({"protocol_version": "0.1", "actions": [7]}, "body:kv_hints:"),
            ({"protocol_version": "0.1", "actions": [{"action_type": "a"}]}, "body:kv_hints:"),
            (
                {"protocol_version": "0.1", "actions": [{"action_id": 1, "action_type": "a\nb"}]},
                "body:kv_hints:",
            ),
            ({"protocol_version": "0.1", "actions": [{}] * 65}, "body:kv_hints"),
        ],
    )
    def test_malformed_envelopes(self, envelope: Any, label: str) -> None:
        assert identify({"kv_hints": envelope}, {}).malformed == (label,)

    def test_edits_of_managed_contexts(self) -> None:
        body = {"agent_hint": {"context_management": {"edits": [{"type": "evict"}]}}}
        (note,) = read_hints(body, {}).notes
        assert (note.label, note.outcome) == (
            "body:agent_hint.context_management:evict", "unsupported",
        )  # fmt: skip


class TestUnknown:
    def test_keys_that_no_row_knows(self) -> None:
        body = {
            "vllm_xargs": {"job_id": "p", "top_secret": 1},
            "nvext": {"agent_hints": {"osl": 5, "zest": 2}},
            "agentrt": {"prioriti": 3},
        }
        who = identify(body, {})
        assert (who.program, who.hints.output_tokens) == ("p", 5)
        unknown = {note.label for note in who.notes if note.outcome == "unknown"}
        assert unknown == {"body:vllm_xargs.*", "body:nvext.agent_hints.*", "body:agentrt.*"}

    def test_an_object_that_is_none(self) -> None:
        assert set(identify({"agentrt": "x", "nvext": {"agent_hints": 3}}, {}).malformed) == {
            "body:agentrt", "body:nvext.agent_hints",
        }  # fmt: skip

    def test_every_key_that_a_row_reads_is_known(self) -> None:
        for row in FIELDS:
            value, _, _ = SAMPLES[row.target]
            body, headers = placed(row.label, SPECIAL.get(row.label, (value, None))[0])
            outcomes = {note.outcome for note in read_hints(body, headers).notes}
            assert "unknown" not in outcomes, row.label


def test_agents_keep_what_they_say_apart() -> None:
    headers = {
        "x-claude-code-session-id": "s",
        "x-claude-code-agent-id": "a7",
        "x-claude-code-parent-agent-id": "a1",
    }
    who = identify({}, headers)
    assert (who.program, who.parent, who.member, who.parent_member) == ("s", None, "a7", "a1")


def test_a_deep_or_endless_text_is_no_session() -> None:
    for text in ('{"a":' * 5000, '{"session_id":"' + "x" * 5000 + '"}'):
        assert identify({"metadata": {"user_id": text}}, {}).program is None


ODD = st.sampled_from([math.nan, math.inf, -math.inf, HUGE, -HUGE, -1, 0, 1e308, "", "NaN", "-5"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
LABELS = [row.label for row in FIELDS] + [
    "body:" + ".".join(path) for path in OBJECTS
] + ["body:kv_hints.actions", "body:agent_hint.context_management.edits"]  # fmt: skip
PLACED = st.tuples(st.sampled_from(LABELS), JSON | st.sampled_from(["X", "20", 20, True]))


@settings(deadline=None, max_examples=120)
@given(st.lists(PLACED, max_size=8))
def test_anything_at_all(parts: list[tuple[str, Any]]) -> None:
    body: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for label, value in parts:
        more, heads = placed(label, value)
        body = merged(body, more)
        headers.update({key: head for key, head in heads.items() if isinstance(head, str)})
    who = identify(body, headers, NOW)
    hints = who.hints
    assert -100 <= hints.priority <= 100
    assert isinstance(hints.priority, int)
    for seconds in (hints.keep_seconds, hints.gap_seconds):
        assert seconds is None or 0.0 <= seconds <= 3600.0
    for moment in (hints.turn_deadline, hints.program_deadline):
        assert moment is None or NOW <= moment <= NOW + 30 * 86_400
    assert hints.output_tokens is None or 1 <= hints.output_tokens <= 1 << 20
    assert hints.remaining_turns is None or 0 <= hints.remaining_turns <= 10_000
    for text in (who.program, who.parent, who.next_tool, hints.agent, hints.step, hints.last_tool):
        assert text is None or (0 < len(text) <= 256 and text.isprintable())
    assert who.last in (True, False)
    assert all(note.label.isascii() and note.label.isprintable() for note in who.notes)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5), st.text(max_size=40))
def test_arbitrary_json(body: dict[str, Any], header: str) -> None:
    headers = {row.label.removeprefix("header:"): header for row in FIELDS}
    identify(body, headers)
    identify({}, {"x-codex-turn-metadata": json.dumps(header)})
