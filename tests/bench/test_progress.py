"""What is shown while a comparison runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from agentrt.bench.metrics import measure
from agentrt.bench.progress import ComparisonView, number, seconds, share, summary_table
from agentrt.bench.recorder import RunProgress
from agentrt.bench.results import Comparison
from tests.bench.builders import play, small_workload


def shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    record = play([(0.0, one) for one in small_workload().programs])
    with ComparisonView(console, ["fcfs"], [0, 1]) as view:
        view.started("fcfs", 0)
        view.progress(RunProgress("fcfs", 0, 12.0, 1, 4, 5, 12, running=2, waiting=3))
        view.finished(record, measure(record), reused=False)
        view.started("fcfs", 1)
        view.progress(RunProgress("fcfs", 1, 12.0, 1, 4, 5, 12, running=2, waiting=3))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_gets_a_table():
    text = shown(terminal=True)
    for word in ("policy", "JCT mean", "done", "1/4", "2 run, 3 wait"):
        assert word in text


def test_a_file_gets_plain_lines():
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "fcfs seed 0: running"
    assert lines[1].startswith("fcfs seed 0: done; 4 programs, JCT mean")
    assert lines[2:] == ["fcfs seed 1: running"]


def test_the_summary_has_a_column_a_policy_and_marks_what_was_cut():
    figures = measure(play([(0.0, one) for one in small_workload().programs]))
    facts = small_workload().select().facts()
    comparison = Comparison(facts, ["fcfs", "plas"])
    comparison.metrics = {
        "fcfs": {"complete": True} | figures,
        "plas": {"complete": False} | figures,
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_table(comparison))
    text = console.file.getvalue()
    assert "plas (interrupted)" in text
    assert "pins handed off" in text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (seconds, None, "-"),
        (seconds, 1234.5, "1,234 s"),
        (seconds, 12.34, "12.3 s"),
        (seconds, 0.045, "45 ms"),
        (number, None, "-"),
        (number, 1.234, "1.23"),
        (number, 1234.5, "1,234"),
        (share, None, "-"),
        (share, 0.9965, "99.7%"),
    ],
)
def test_figures_are_short(form, value, text):
    assert form(value) == text
