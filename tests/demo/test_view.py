"""The terminal: a table where there is one, plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from agentrt.demo.progress import Row
from agentrt.demo.view import View, closing_table, live_table

ROW = Row(
    "page-window", "off-by-one", "title", turns=7, state="running", turn=3, tool_calls=3,
    command="sed -i s/a/b/ x.py\ncat [x.py]", prompt_tokens=4000, cached_tokens=3000,
    output_tokens=123, started=1.0,
)  # fmt: skip


def rendered(table) -> str:
    console = Console(file=io.StringIO(), width=130)
    console.print(table)
    return console.file.getvalue()


def test_live_table_has_one_line_a_program():
    text = rendered(live_table([ROW, Row("other", "logic", "t", turns=6)], 12.3))
    (line,) = [line for line in text.splitlines() if "page-window" in line]
    for shown in ("running", "3/7", "sed -i s/a/b/ x.py cat [x.py]", "4,123", "75%"):
        assert shown in line
    assert "waiting" in text


def test_closing_table():
    done = Row(**{name: getattr(ROW, name) for name in ROW.__slots__})
    done.state, done.finished, done.detail = "unresolved", 9.5, "tests fail (exit code 1)"
    text = rendered(closing_table([done]))
    assert "unresolved: tests fail (exit code 1)" in text
    assert "8.5" in text


def test_plain_lines_off_a_terminal():
    console = Console(file=io.StringIO(), width=60)
    with View(console, {"page-window": ROW}, lambda: 5.0) as view:
        view.observe(ROW, "$ echo [bold] is not markup " + "x" * 80)
        view.observe(ROW, "")
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("   0.0s  page-window    $ echo [bold] is not markup xxx")


def test_a_table_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with View(console, {"page-window": ROW}, lambda: 5.0) as view:
        view.observe(ROW, "said")
    shown = console.file.getvalue()
    assert "page-window" in shown
    assert "said" not in shown
