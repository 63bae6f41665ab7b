"""`agentrt simulate` and `agentrt cost`, called as a user does."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from agentrt.cli.main import app
from agentrt.errors import ConfigError
from agentrt.simulation.cost import load_cost
from tests.bench.builders import small_workload, write_workload_file


def run(*arguments: str):
    """Call the command line; what it raises on a user's error is the caller's to expect."""
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


@pytest.fixture
def load(tmp_path):
    return write_workload_file(tmp_path / "tiny.jsonl", small_workload(count=6, turns=3))


def test_a_cluster_is_simulated_and_reported(load, tmp_path):
    out = tmp_path / "out"
    done = run(
        "simulate", load, "--workers", 3, "--rate", 1, "--programs", 20, "--seed", 4,
        "--policies", "fcfs,fixed-ttl=30", "--placements", "agentrt,least-loaded",
        "--out", out, "--json", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((out / "results.json").read_text())
    assert [(row["policy"], row["placement"]) for row in told["runs"]] == [
        ("fcfs", "agentrt"),
        ("fcfs", "least-loaded"),
        ("fixed-ttl=30", "agentrt"),
        ("fixed-ttl=30", "least-loaded"),
    ]
    for row in told["runs"]:
        assert row["complete"]
        assert row["figures"]["programs"] == {"finished": 20}
        assert row["routers"][0]["workers"] == 3
    assert "fcfs / least-loaded" in (out / "report.html").read_text()
    assert told["settings"]["programs"] == 20


def test_the_same_command_gives_the_same_figures(load):
    arguments = ("simulate", load, "--workers", 2, "--rate", 2, "--json", "--quiet")
    first, again = (json.loads(run(*arguments).stdout) for _ in range(2))
    assert first["runs"][0]["figures"] == again["runs"][0]["figures"]


def test_a_table_is_shown(load):
    done = run("simulate", load, "--workers", 2, "--split", "1:1", "--rate", 1, "--quiet")
    assert "completion time mean" in done.output
    assert "tokens over the network" in done.output


def test_tool_limits_and_scaling_are_taken(load):
    done = run(
        "simulate", load, "--workers", 2, "--rate", 5, "--tool-slots", 1, "--tool-memory", 1,
        "--scale", "1:+2,3:-1", "--json", "--quiet",
    )  # fmt: skip
    row = json.loads(done.stdout)["runs"][0]
    assert row["tools"] is not None
    assert row["routers"][0]["workers"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--split", "3"), "--split"),
        (("--split", "0:2"), "--split"),
        (("--workers", "0"), "--workers"),
        (("--scale", "x"), "--scale"),
        (("--placement", "nowhere"), "placement"),
        (("--gpu", "h1000"), "--gpu"),
        (("--model", "gpt"), "--model"),
        (("--bandwidth", "0"), "bandwidth"),
        (("--programs", "0"), "--programs"),
        (("--pool", "10"), "pool"),
    ],
)
def test_a_wrong_option_is_explained(load, arguments, said):
    with pytest.raises(ConfigError, match=said):
        run("simulate", load, *arguments, "--quiet")


def test_costs_are_listed_and_shown(tmp_path):
    assert "h200/qwen3-8b" in run("cost", "list").output
    listed = json.loads(run("cost", "list", "--json").stdout)
    shown = json.loads(run("cost", "show", "h200/qwen3-8b").stdout)
    assert listed["h200/qwen3-8b"] == shown
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(shown))
    assert load_cost(str(path)) == load_cost("h200/qwen3-8b")


def test_a_cost_file_is_fitted_and_used(load, tmp_path):
    points, fitted = tmp_path / "points.json", tmp_path / "fitted.json"
    points.write_text(
        json.dumps(
            {
                "prefill": [[n, 0.004 + 1e-4 * n] for n in (64, 256, 1024, 2048)],
                "decode": [[n, 100 * n, 0.004 + 1e-5 * n] for n in (1, 8, 32)],
                "reload": [[1000, 0.002], [2000, 0.004]],
                "max_seqs": 9,
                "source": "a bench",
            }
        )
    )
    done = run("cost", "fit", points, "-o", fitted)
    assert "prefill: R² 1.0000 over 4 points" in done.output
    cost = load_cost(str(fitted))
    assert cost.max_seqs == 9
    assert cost.source == "a bench"
    assert cost.prefill_token_seconds == pytest.approx(1e-4, rel=1e-3)
    done = run("simulate", load, "--cost", fitted, "--json", "--quiet")
    assert json.loads(done.stdout)["settings"]["cluster"]["cost"]["max_seqs"] == 9
