"""What a run looks like at a terminal, and how a person is asked there."""

from __future__ import annotations

import io
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from agentrt.cli.guide_view import RunView, event_line
from agentrt.cli.main import main
from agentrt.workflows.events import Event
from agentrt.workflows.person import Question

TITLES = {"Step1": "Look"}
SAMPLE = Path(__file__).parent / "stepfly_sample"
EDGE = Question("Step1/e", "Step1", "Does it hold?", ("enabled", "disabled"), "disabled", None)
GATE = Question("Step1/approve", "Step1", "May it start?", ("approve", "deny"), "deny", None)


def event(kind, step="Step1", **data):
    return Event(0, "2026-01-01T00:00:00Z", kind, step, data)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (event("step_started", attempt=1), "Step1    started: Look"),
        (event("step_started", attempt=2), "Step1    started (attempt 2): Look"),
        (event("step_finished", status="failed", error="no data"), "Step1    failed: no data"),
        (event("step_retried", wait=0.5, error="x"), "Step1    again in 0.5 s: x"),
        (
            event("edge_decided", edge="edge_Step1_end", state="enabled", by="code", evidence="y"),
            "Step1      -> end, by code: y",
        ),
        (event("edge_decided", edge="edge_Step1_end", state="disabled", by="code"), ""),
        (event("query_run"), ""),
        (
            event("gate_opened", gate="g", question="q", options=["a", "b"], default="b"),
            "Step1    asks g: q [a|b]; default b",
        ),
        (event("gate_answered", gate="g", answer="a", by="person"), "Step1    g: a, by person"),
    ],
)
def test_each_event_is_a_line_or_nothing(found, line):
    assert event_line(found, TITLES) == line


def test_text_of_others_is_never_markup():
    out = io.StringIO()
    view = RunView(Console(file=out, width=200), TITLES)
    view.show(event("step_finished", status="failed", error="[red]x[/red] [/]"))
    assert "[red]x[/red] [/]" in out.getvalue()


def test_a_terminal_shows_what_runs_and_leaves_no_spinner_behind():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with RunView(console, TITLES) as view:
        view.show(event("step_started", attempt=1))
        view.show(event("step_finished", status="succeeded"))
    assert "Look" in out.getvalue()
    assert console._live_stack == []


@pytest.mark.parametrize(
    ("typed", "question", "answer"),
    [
        ("enabled", EDGE, "enabled"),
        ("e", EDGE, "enabled"),
        ("yes", EDGE, "enabled"),
        ("n", EDGE, "disabled"),
        ("", EDGE, "disabled"),
        ("Approve", GATE, "approve"),
        ("perhaps", GATE, "perhaps"),
    ],
)
def test_a_person_may_be_brief(typed, question, answer, monkeypatch):
    console = Console(file=io.StringIO())
    monkeypatch.setattr(console, "input", lambda prompt: typed)
    assert RunView(console, TITLES).ask(question) == answer


def test_a_closed_terminal_is_the_default(monkeypatch):
    def closed(prompt):
        raise EOFError

    console = Console(file=io.StringIO())
    monkeypatch.setattr(console, "input", closed)
    assert RunView(console, TITLES).ask(GATE) == "deny"


@pytest.fixture
def mail(tmp_path, monkeypatch):
    """The database that the plugins of the sample in StepFly's layout ask."""
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mail.db")) as database, database:
        database.execute("CREATE TABLE relay_delay (ts, relay, delay_seconds)")
        database.execute("CREATE TABLE relay_queue (ts, relay, depth)")
        database.execute("CREATE TABLE filter_log (ts, message, level)")
        database.execute("INSERT INTO relay_delay VALUES ('2026-03-04 08:10:00', 'r2', 900)")
    return tmp_path / "mail.db"


def test_a_guide_in_stepflys_layout_runs_from_the_command_line(mail, capsys):
    incident = SAMPLE / "incidents" / "2026-0117.txt"
    with pytest.raises(SystemExit) as end:
        main(["guide", "run", str(SAMPLE), "--incident", str(incident), "--database", str(mail)])
    assert end.value.code in (0, None)
    out = capsys.readouterr().out
    assert "disabled, by default" in out
    # Steps 3 and 4 run in parallel: either may be done first.
    assert re.search("path     Step1 Step2 (Step3 Step4|Step4 Step3) Step5", out)


def test_a_stepfly_guide_without_its_database_is_refused(mail, capsys):
    incident = SAMPLE / "incidents" / "2026-0117.txt"
    with pytest.raises(SystemExit) as end:
        main(["guide", "run", str(SAMPLE), "--incident", str(incident)])
    assert end.value.code == 2
    assert "--database" in capsys.readouterr().err
