"""Which policies a command means, and a policy taken apart."""

from __future__ import annotations

import json
import sys

import pytest

from agentrt.bench.ablate import Ablation, ablated_policies, ingredients
from agentrt.bench.policies import (
    FIXED_TTL_SWEEP,
    ORACLES,
    best_fixed_ttl,
    expand_policies,
)
from agentrt.bench.report_grid import write_ablation_report
from agentrt.bench.results import Comparison
from agentrt.errors import ConfigError
from agentrt.scheduling import policy_names, registry
from agentrt.scheduling.fixed_ttl import fixed_ttl
from tests.bench.builders import small_workload, write_workload_file
from tests.bench.test_cli_bench import SIMULATED, call

INGREDIENTS = ("pins", "luck")


def two_parts(argument, around):
    """A policy for these tests: without its pins it keeps nothing; its luck does nothing."""
    off = set((argument or "").split(",")) - {""}
    if not off <= {"no-pins", "no-luck"}:
        raise ConfigError(f"two-parts cannot do without {off}.", remedy="See INGREDIENTS.")
    return fixed_ttl("0" if "no-pins" in off else "30", around)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.BUILTIN, "two-parts", two_parts)


def test_all_means_every_policy_once_and_the_sweep_but_no_oracle():
    names = expand_policies("all")
    assert {name.partition("=")[0] for name in names} == set(policy_names()) - set(ORACLES)
    assert [name for name in names if name.startswith("fixed-ttl")] == [
        f"fixed-ttl={seconds}" for seconds in FIXED_TTL_SWEEP
    ]
    assert len(names) == len(set(names))


def test_names_switches_and_repetitions():
    assert expand_policies("fcfs, fcfs,fixed-ttl=3") == ["fcfs", "fixed-ttl=3"]
    assert expand_policies("two-parts=no-pins,no-luck,fcfs") == [
        "two-parts=no-pins,no-luck",
        "fcfs",
    ]
    with pytest.raises(ConfigError, match="no-luck"):
        expand_policies("fcfs,no-luck")


def test_the_best_fixed_ttl_is_the_one_with_the_largest_figure():
    rates = [("fcfs", 9.0), ("fixed-ttl=2", 1.0), ("fixed-ttl=30", 3.0)]
    assert best_fixed_ttl(rates) == ("fixed-ttl=30", 3.0)
    assert best_fixed_ttl(rates[:1]) is None


def test_ingredients_come_from_the_policys_module():
    assert ingredients("two-parts") == ["pins", "luck"]
    assert ablated_policies("two-parts") == {
        "nothing": "two-parts",
        "pins": "two-parts=no-pins",
        "luck": "two-parts=no-luck",
        "everything": "two-parts=no-pins,no-luck",
    }
    with pytest.raises(ConfigError, match="fcfs"):
        ingredients("fcfs")


def test_worth_is_the_mean_of_the_seeds_ratios(tmp_path):
    policies = {"nothing": "p", "pins": "p=no-pins"}
    facts = small_workload().facts()
    comparison = Comparison(facts, list(policies.values()))
    comparison.per_seed = {
        "p": {"0": {"jct_mean": 10.0, "longest_wait": 0.0}, "1": {"jct_mean": 20.0}},
        "p=no-pins": {"0": {"jct_mean": 20.0, "longest_wait": 1.0}, "1": {"jct_mean": 20.0}},
    }
    comparison.metrics = {name: rows["0"] for name, rows in comparison.per_seed.items()}
    ablation = Ablation(policies, comparison)
    worth = ablation.worth("pins", "jct_mean")
    assert worth["ratio"] == 1.5
    assert worth["interval"][0] < 1.5 < worth["interval"][1]
    assert ablation.worth("pins", "longest_wait") is None
    write_ablation_report(ablation, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "What each ingredient is worth" in text
    assert "1.50×" in text


def test_ablate_as_a_user_types_it(monkeypatch, capsys, tmp_path):
    tiny = str(write_workload_file(tmp_path / "tiny.jsonl", small_workload()))
    base = [*SIMULATED[2:], "--policy", "two-parts", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert call(monkeypatch, "bench", "ablate", tiny, *base, "--quiet") == 0
    assert "everything" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert list(told["without"]) == ["pins", "luck", "everything"]
    assert told["without"]["luck"]["jct_mean"]["ratio"] == 1.0
    assert told["without"]["pins"]["policy"] == "two-parts=no-pins"
    assert (tmp_path / "out" / "ablation.html").exists()
    assert (tmp_path / "out" / "report.html").exists()
    monkeypatch.setattr(sys, "argv", ["agentrt"])
    assert call(monkeypatch, "bench", "ablate", tiny, "--policy", "fcfs") == 2
    assert "INGREDIENTS" in capsys.readouterr().err
