"""Intents from every place that they can come from."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentrt
from agentrt.errors import ConfigError, InvalidRequest
from agentrt.resources.hints import (
    HINT_VARIABLE,
    hint_in_command,
    hint_of_call,
    parse_hint,
    tool_call_intent,
)
from agentrt.resources.intent import Intent, current_intent, intent_from_json, merged

GIB = 1 << 30


def test_from_python() -> None:
    found = agentrt.intent(memory="1g", cpu=2, expect="30s", network="none", deadline="5m")
    assert found == Intent(memory=GIB, cpu=2, expect=30.0, network="none", deadline=300.0)
    assert intent_from_json(found.to_json()) == found
    assert not agentrt.intent()
    assert found


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": "lots"},
        {"memory": 5},
        {"memory": -1},
        {"cpu": 0},
        {"cpu": float("nan")},
        {"cpu": True},
        {"pids": -2},
        {"network": "all"},
        {"priority": "urgent"},
        {"on_limit": "ignore"},
        {"deadline": float("inf")},
    ],
)
def test_what_is_out_of_range_is_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        agentrt.intent(**wrong)
    with pytest.raises(InvalidRequest):
        intent_from_json(wrong)


@pytest.mark.parametrize("value", [None, [], "memory:1g", {"ram": 1}, {"memory": [1]}, {1: 2}])
def test_json_of_another_shape_is_refused(value) -> None:
    with pytest.raises(InvalidRequest):
        intent_from_json(value)


def test_a_block_declares_for_what_is_in_it() -> None:
    assert current_intent() is None
    with agentrt.intent(memory="1g", cpu=1):
        with agentrt.intent(cpu=2):
            assert current_intent() == Intent(memory=GIB, cpu=2)
        assert current_intent() == Intent(memory=GIB, cpu=1)
    assert current_intent() is None


async def both() -> list[Intent | None]:
    seen: list[Intent | None] = []

    async def look() -> None:
        seen.append(current_intent())

    async with anyio.create_task_group() as tasks:
        with agentrt.intent(cpu=1):
            tasks.start_soon(look)
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(look)
    return seen


def test_tasks_keep_the_block_that_they_began_in() -> None:
    assert anyio.run(both) == [Intent(cpu=1), None]


def test_a_decorated_function_declares() -> None:
    @agentrt.intent(memory="low")
    def plain() -> Intent | None:
        return current_intent()

    @agentrt.intent(memory="high")
    async def waiting() -> Intent | None:
        return current_intent()

    assert plain() == Intent(memory="low")
    assert anyio.run(waiting) == Intent(memory="high")
    assert plain.__name__ == "plain"


def test_the_first_that_says_something_counts() -> None:
    assert merged(Intent(cpu=1), Intent(cpu=2, pids=3)) == Intent(cpu=1, pids=3)
    assert merged(None, None) == Intent()


@pytest.mark.parametrize(
    ("hint", "memory"),
    [
        ("memory:low", "low"),
        ("memory:medium", "medium"),
        ("memory:high", "high"),
        ("memory:2g", 2 * GIB),
        ("memory:2G", 2 * GIB),
        ("memory:512m", 512 << 20),
        ("memory:512M", 512 << 20),
        ("memory:plenty", None),
        ("", None),
        ("disk:1g", None),
    ],
)
def test_hints_as_agents_were_taught_them(hint, memory) -> None:
    assert parse_hint(hint)[0].memory == memory


def test_hints_may_say_more_and_what_is_not_understood_is_listed() -> None:
    found, problems = parse_hint("memory:1g, cpu:2;expect=30s on-limit:freeze colour:red")
    assert found == Intent(memory=GIB, cpu=2, expect=30, on_limit="freeze")
    assert problems == ("colour:red",)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (f'{HINT_VARIABLE}="memory:2g" pytest -q', "memory:2g"),
        (f"A=1 {HINT_VARIABLE}=memory:2g pytest", "memory:2g"),
        (f"export {HINT_VARIABLE}='memory:2g'; pytest", "memory:2g"),
        (f"env {HINT_VARIABLE}=memory:2g pytest", "memory:2g"),
        (["env", f"{HINT_VARIABLE}=memory:2g", "pytest"], "memory:2g"),
        (f"echo {HINT_VARIABLE}=memory:2g", None),
        (f"cd x && {HINT_VARIABLE}=memory:2g ls", None),
        (f'{HINT_VARIABLE}="memory:2g', f'{HINT_VARIABLE}="memory:2g'.partition("=")[2]),
        ("", None),
    ],
)
def test_a_hint_in_the_command_string(command, hint) -> None:
    assert hint_in_command(command) == hint


def test_the_command_goes_before_the_environment() -> None:
    env = {HINT_VARIABLE: "memory:1g,cpu:3"}
    assert hint_of_call(f"{HINT_VARIABLE}=memory:2g ls", env)[0] == Intent(memory=2 * GIB)
    assert hint_of_call("ls", env)[0] == Intent(memory=GIB, cpu=3)


def test_tool_call_arguments() -> None:
    arguments = {"command": "ls", "intent": {"memory": "1g"}, "resource_hint": "cpu:2,bad"}
    found, rest, problems = tool_call_intent(arguments)
    assert found == Intent(memory=GIB, cpu=2)
    assert rest == {"command": "ls"}
    assert problems == ("bad",)
    found, rest, problems = tool_call_intent({"intent": {"memory": "x", "cpu": 1}})
    assert (found, rest) == (Intent(), {})
    assert "size" in problems[0]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80) | st.from_regex(r"(memory|cpu|pids|io):[0-9a-z.]{1,12}"))
def test_no_text_is_ever_refused_as_a_hint(text: str) -> None:
    found, problems = parse_hint(text)
    assert isinstance(found, Intent)
    assert all(problem in text.replace("=", ":") or problem in text for problem in problems)
    hint_in_command(text)
    hint_in_command(f"{HINT_VARIABLE}={text}")
