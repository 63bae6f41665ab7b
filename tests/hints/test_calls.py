"""Calls of tools in answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.hints.calls import LONGEST, MULTI, called_tool
from agentrt.tools import tool_name

HERMES = '<tool_call>\n{"name": "read", "arguments": {"path": "{a}"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("I am done.", None),
        ("", None),
        ("Look:\n```bash\nA=1 pytest -q | tail\n```\n", "pytest"),
        ("```bash\n/usr/bin/git status\n```", "git"),
        ("```mswea_bash_command\nls\n```", "ls"),
        ("```bash\nls\n```\nand\n```bash\ncat x\n```", MULTI),
        ("```bash\n```", None),
        ("```python\nprint(1)\n```", None),
        ("```bash\nls", None),
        (f"Reading.\n{HERMES}", "read"),
        (f"{HERMES}\n{HERMES}", MULTI),
        ('{"name": "edit", "parameters": {}}', "edit"),
        ('{"name": "edit"}', None),
        ('{"name": 7, "parameters": {}}', None),
        ('{"name": "' + "x" * 300 + '", "parameters": {}}', None),
        ("<tool_call>{broken}</tool_call>", None),
        ("<tool_call>" + '{"a":' * 3000 + "}</tool_call>", None),
        (HERMES.removesuffix("</tool_call>"), "read"),  # the end was a stop string
        ("x" * LONGEST + f"\n{HERMES}", "read"),
    ],
)
def test_calls(text: str, tool: str | None) -> None:
    assert called_tool(text, tool_name) == tool


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.sampled_from(["```bash\n", "\n```\n", "<tool_call>", "</tool_call>", "{", "}", '"name"'])
        | st.text(max_size=12),
        max_size=20,
    )
)
def test_any_text(parts: list[str]) -> None:
    found = called_tool("".join(parts), tool_name)
    assert found is None or len(found) > 0


@settings(deadline=None, max_examples=80)
@given(st.text(min_size=1, max_size=20).filter(lambda name: name.strip() and name.isprintable()))
def test_names_are_read_back(name: str) -> None:
    call = json.dumps({"name": name, "arguments": {}})
    assert called_tool(f"<tool_call>{call}</tool_call>", tool_name) == name.strip()
