"""Workloads drawn by rule."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from agentrt.bench.importers import load_workload
from agentrt.bench.settings import BenchSettings
from agentrt.bench.synthetic import SYNTHETIC, synthetic_workload
from agentrt.errors import ConfigError

SMALL = "minutes=1&load=0.1"


@pytest.mark.parametrize("name", sorted(SYNTHETIC))
def test_the_same_name_is_the_same_workload(name):
    query = SMALL if name == "ten-tenants" else "programs=3"
    first = load_workload(Path(f"synthetic:{name}?{query}"))
    assert first == synthetic_workload(f"synthetic:{name}?{query}")
    assert first != synthetic_workload(f"synthetic:{name}?{query}&seed=1")
    names = [program.program for program in first.programs]
    assert len(set(names)) == len(names) > 0
    selected = BenchSettings(engine="simulated").select(first)
    assert len(selected.programs) == len(first.programs)
    for program in first.programs:
        held: dict[str, int] = {}
        for turn in program.turns:
            assert turn.reused_tokens == held.get(turn.context, 0) <= turn.prompt_tokens
            held[turn.context] = turn.prompt_tokens + turn.output_tokens


def test_swe_is_as_published():
    programs = synthetic_workload("synthetic:swe?programs=400").programs
    turns = [len(program.turns) for program in programs]
    assert statistics.mean(turns) == pytest.approx(10.9, rel=0.05)
    assert statistics.pstdev(turns) == pytest.approx(2.1, rel=0.2)
    gaps = [turn.gap for program in programs for turn in program.turns if turn.gap is not None]
    assert statistics.mean(gaps) == pytest.approx(0.925, rel=0.15)


def test_ten_tenants_arrive_at_their_rates():
    programs = synthetic_workload("synthetic:ten-tenants?load=1&minutes=5&steps=0.1").programs
    counts = dict.fromkeys(("heavy", "medium", "light"), 0)
    for program in programs:
        counts[program.tenant.partition("-")[0]] += 1
    assert counts["heavy"] == pytest.approx(3 * 16 * 5, rel=0.2)
    assert counts["medium"] == pytest.approx(4 * 8 * 5, rel=0.2)
    assert counts["light"] == pytest.approx(3 * 4 * 5, rel=0.4)
    assert [row.arrival for row in programs] == sorted(row.arrival for row in programs)


def test_subagents_and_branches_run_side_by_side():
    for name in ("subagents", "branches"):
        programs = synthetic_workload(f"synthetic:{name}?programs=8").programs
        assert all(program.branches for program in programs)
        widest = max(
            sum(place in program.predecessors(index) for index in range(len(program.turns)))
            for program in programs
            for place in range(len(program.turns))
        )
        assert widest == (3 if name == "subagents" else 1)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("synthetic:swe-bench", "swe, ten-tenants"),
        ("synthetic:swe?width=2", "programs"),
        ("synthetic:swe?programs=many", "0 or more"),
        ("synthetic:swe?programs=-1", "0 or more"),
    ],
)
def test_wrong_names_and_values_name_the_remedy(spec, said):
    with pytest.raises(ConfigError) as caught:
        synthetic_workload(spec)
    assert said in caught.value.remedy
