"""From an intent to limits: clamped, filled in, and said so. And what is learned for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.resources.control_events import HIGH, LOW, NORMAL
from agentrt.resources.envelope import Budget, make_envelope
from agentrt.resources.intent import Intent
from agentrt.resources.learned import Learner, Observation, command_kind, quantile, tool_name

MIB = 1 << 20
GIB = 1 << 30
USUAL = Learner().estimate("pytest", "test")
HOST = Budget("host", memory=8 * GIB, cpu=4)
PROGRAM = Budget("program", memory=2 * GIB, pids=100, priority="normal", seconds=600)


def test_what_is_declared_is_given() -> None:
    found = make_envelope(Intent(memory=GIB, cpu=2, pids=50), USUAL, [HOST])
    assert (found.memory_high, found.memory_max) == (GIB, GIB + GIB // 4)
    assert found.claim == found.memory_max
    assert (found.cpu_max, found.pids_max, found.clamps) == (2, 50, ())
    assert found.enforced
    spec = found.spec("c", "t", "p", 100.0)
    assert (spec.soft, spec.claim, spec.ceiling) == (GIB, found.memory_max, 8 * GIB)


def test_a_budget_cuts_and_says_so() -> None:
    asked = Intent(memory=4 * GIB, cpu=64, priority="high", deadline=10_000)
    found = make_envelope(asked, USUAL, [PROGRAM, HOST])
    assert found.memory_max == 2 * GIB
    assert (found.cpu_max, found.pids_max, found.priority) == (4, 100, NORMAL)
    assert found.deadline == 600
    assert [str(clamp) for clamp in found.clamps] == [
        "priority high was cut to normal, the budget of the program",
        "cpu 64 was cut to 4, the budget of the host",
        "memory 4g was cut to 2g, the budget of the program",
        "deadline 10000 was cut to 600, the budget of the program",
    ]


def test_killed_at_the_limit_means_a_hard_limit() -> None:
    found = make_envelope(Intent(memory=GIB, on_limit="kill"), USUAL, [HOST])
    assert (found.memory_high, found.memory_max, found.ceiling) == (None, GIB, GIB)
    assert found.most == 8 * GIB


def test_without_a_word_the_estimate_is_reserved_and_the_budget_limits() -> None:
    found = make_envelope(Intent(), USUAL, [PROGRAM, HOST])
    assert (found.claim, found.memory_max, found.memory_high) == (USUAL.memory, 2 * GIB, None)
    assert not found.enforced
    assert found.why == "usual for test commands"
    assert found.clamps == ()


@pytest.mark.parametrize(("level", "size"), [("low", 256 * MIB), ("medium", GIB)])
def test_levels(level, size) -> None:
    assert make_envelope(Intent(memory=level), USUAL, [HOST]).memory_high == size


def test_a_high_level_is_all_that_the_budgets_allow() -> None:
    found = make_envelope(Intent(memory="high"), USUAL, [HOST])
    assert (found.claim, found.memory_max, found.enforced) == (GIB, 8 * GIB, False)


def test_the_sandbox_owns_its_limits() -> None:
    found = make_envelope(
        Intent(memory=4 * GIB, cpu=3), USUAL, [HOST], hard_memory=GIB, hard_cpu=1.0, hard_pids=9
    )
    assert (found.memory_max, found.ceiling) == (GIB, GIB)
    assert (found.cpu_max, found.pids_max) == (1.0, 9)
    assert found.clamps[0].by == "sandbox"


intents = st.builds(
    Intent,
    memory=st.none() | st.sampled_from(["low", "medium", "high"]) | st.integers(MIB, 1 << 45),
    cpu=st.none() | st.floats(0.01, 1e4),
    pids=st.none() | st.integers(1, 10**6),
    priority=st.none() | st.sampled_from(["low", "normal", "high"]),
    on_limit=st.none() | st.sampled_from(["kill", "freeze", "throttle"]),
)
sizes = st.none() | st.integers(16 * MIB, 1 << 40)
budgets = st.builds(
    Budget,
    name=st.just("program"),
    memory=sizes,
    cpu=st.none() | st.floats(0.1, 64),
    pids=st.none() | st.integers(1, 1000),
)


@settings(max_examples=300, deadline=None)
@given(intents, st.lists(budgets, max_size=3), sizes)
def test_no_intent_gets_more_than_any_budget(asked, bounds, hard) -> None:
    found = make_envelope(asked, USUAL, bounds, hard_memory=hard)
    for bound in (*bounds, Budget("sandbox", memory=hard)):
        if bound.memory is not None:
            assert found.memory_max is not None
            assert max(found.memory_max, found.claim, found.ceiling) <= bound.memory
        if bound.cpu is not None:
            assert found.cpu_max is not None
            assert found.cpu_max <= bound.cpu
        if bound.pids is not None:
            assert found.pids_max is not None
            assert found.pids_max <= bound.pids
    assert 0 < found.claim <= found.ceiling
    assert found.start <= found.claim
    assert found.priority in (LOW, NORMAL, HIGH)
    # The rule of the house: a soft limit never stands alone.
    assert found.memory_high is None or (
        found.memory_max is not None and found.memory_high < found.memory_max
    )


# --- learned ---


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("pytest -q", "test"),
        ("cd /testbed && python -m pytest tests/a.py -x", "test"),
        ("PYTHONPATH=. python3 -m unittest", "test"),
        ("npm test", "test"),
        ("pip install -e .", "install"),
        ("apt-get -y install gcc", "install"),
        ("git log --oneline | head", "git"),
        ("ls -la", "explore"),
        ("/usr/bin/grep -r x .", "explore"),
        ("make -j8", "build"),
        ("python run.py", "run"),
        ("frobnicate", "other"),
        (["pytest", "a b"], "test"),
    ],
)
def test_kinds_of_commands(command, kind) -> None:
    assert command_kind(command) == kind


def test_estimates_grow_from_the_usual_to_the_seen() -> None:
    learner = Learner()
    first = learner.estimate("pytest", "test", "repo")
    for _ in range(4):
        learner.observe("pytest", "test", "repo", Observation(800 * MIB, 10.0))
    few = learner.estimate("pytest", "test", "repo")
    assert first.calls == 0
    assert few.memory == 1000 * MIB
    learner.observe("pytest", "test", "repo", Observation(800 * MIB, 10.0))
    seen = learner.estimate("pytest", "test", "repo")
    assert (seen.memory, seen.typical, seen.seconds) == (1000 * MIB, 800 * MIB, 10.0)
    assert "5 calls: pytest (test) in this repository" in seen.source
    assert "anywhere" in learner.estimate("pytest", "test", "other").source
    assert learner.estimate("git", "git", "repo").calls == 0


def test_what_was_cut_short_needed_more() -> None:
    learner = Learner()
    for _ in range(6):
        learner.observe("x", "other", "", Observation(100 * MIB, 1.0, complete=False))
    assert learner.estimate("x", "other").memory == int(1.25 * 150 * MIB)


def test_memory_of_the_learner_is_bounded() -> None:
    learner = Learner()
    for number in range(3000):
        learner.observe(f"t{number}", "other", f"r{number}", Observation(MIB, 1.0))
    assert len(learner) <= 4096


def test_quantiles_and_names() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([1.0], 0.95) == 1
    assert tool_name("A=1 /usr/bin/pytest -q") == "pytest"
