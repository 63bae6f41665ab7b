"""What a tool call is told: the truth about memory, and one line that helps."""

from __future__ import annotations

import json
from dataclasses import replace

from agentrt.resources.control_state import CallReport
from agentrt.resources.envelope import Budget, make_envelope
from agentrt.resources.feedback import Ending, make_feedback, record
from agentrt.resources.intent import Intent
from agentrt.resources.learned import Learner

MIB = 1 << 20
GIB = 1 << 30
ENVELOPE = make_envelope(
    Intent(memory=GIB), Learner().estimate("x", "test"), [Budget("host", memory=4 * GIB)]
)
FINE = Ending(exit_code=0, duration=2.0, peak_memory=100 * MIB, memory_limit=GIB)
QUIET = CallReport("running", GIB, 0, 0, 0, 0.0, 0.0, 0, 0.0, None)


def test_nothing_is_said_of_what_went_well() -> None:
    told = make_feedback(FINE, ENVELOPE, QUIET)
    assert (told.outcome, told.text, dict(told.suggested)) == ("fine", "", {})
    assert (told.peak, told.limit) == (100 * MIB, GIB)


def test_137_without_an_oom_kill_is_an_exit_code() -> None:
    told = make_feedback(replace(FINE, exit_code=137), ENVELOPE, QUIET)
    assert (told.outcome, told.text) == ("failed", "")


def test_an_oom_kill_without_137_is_out_of_memory() -> None:
    told = make_feedback(replace(FINE, exit_code=1, oom_kills=1), ENVELOPE, QUIET)
    assert told.outcome == "out_of_memory"
    assert told.text.startswith("[Resource] The command ran out of memory: it may use 1g.")
    assert told.suggested == {"memory": "1.5g"}
    assert 'AGENT_RESOURCE_HINT="memory:1.5g"' in told.text
    assert "\n" not in told.text


def test_a_grandchild_killed_under_an_exit_of_zero_is_told() -> None:
    told = make_feedback(replace(FINE, oom_kills=2), ENVELOPE, QUIET)
    assert told.outcome == "fine"
    assert "killed 2 processes of this command for lack of memory" in told.text


def test_at_the_budget_nothing_more_is_suggested() -> None:
    ending = replace(FINE, exit_code=137, oom_kills=1, memory_limit=4 * GIB)
    told = make_feedback(ending, ENVELOPE, QUIET)
    assert dict(told.suggested) == {}
    assert "all that can be had here" in told.text


def test_standing_still_is_told_with_whom_for() -> None:
    report = replace(QUIET, frozen=12.3, freezes=2, waited=3.0)
    told = make_feedback(FINE, ENVELOPE, report, "another tenant's tool call")
    assert "waited 3.0 s for memory" in told.text
    assert "stood still for 12.3 s behind another tenant's tool call." in told.text
    assert (told.frozen, told.freezes, told.winner) == (12.3, 2, "another tenant's tool call")


def test_kills_say_why_and_what_to_do() -> None:
    for reason, words in (
        ("limit", "AGENT_RESOURCE_HINT"),
        ("no_room", "try again later"),
        ("deadline", "later deadline"),
    ):
        ending = replace(FINE, exit_code=137, killed="so it is", killed_for=reason)
        told = make_feedback(ending, ENVELOPE, QUIET)
        assert told.outcome == "killed"
        assert told.text.startswith("[Resource] The command was killed: so it is.")
        assert words in told.text


def test_limits_of_processes_and_cpu() -> None:
    ending = replace(FINE, pids_refused=7, pids_limit=32, cpu_throttled=1.5, memory_stalled=1.0)
    told = make_feedback(ending, ENVELOPE, QUIET)
    assert "refused new processes 7 times by its limit of 32" in told.text
    assert "held back 1.5 s by its CPU limit" in told.text
    assert "slowed for 1.0 s by its memory limit" in told.text
    assert told.suggested == {"pids": 64}


def test_the_record_has_the_known_fields_and_any_command() -> None:
    told = make_feedback(FINE, ENVELOPE, QUIET, notes=("colour:red",))
    line = record(
        told, wall=1.5, pid=7, cgroup="/x", command='a "b"\n\\c' * 99, ending=FINE, hint="memory:1g"
    )
    again = json.loads(json.dumps(line))
    assert list(again)[:9] == [
        "ts", "pid", "cgroup", "cmd", "exit", "duration_ms", "peak_mem", "current_mem", "hint",
    ]  # fmt: skip
    assert again["ts"] == 1_500_000_000
    assert again["peak_mem"] == str(100 * MIB)
    assert len(again["cmd"]) == 200
    assert "colour:red" in again["feedback"]
