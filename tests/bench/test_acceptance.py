"""Whole runs: texts through a real (tiny) model, and the published ranking in simulation."""

from __future__ import annotations

import json
import sys

import pytest

from agentrt.cli.main import main

torch = pytest.importorskip("torch", reason="the engine extra is not installed")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    from agentrt.engine.model.make import make_model

    directory = tmp_path_factory.mktemp("bench") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return str(directory)


def sessions(path, count=3, turns=5):
    """Write sessions as the miniswe trace has them: inputs that grow, answers apart."""
    lines = []
    for session in range(count):
        text = 8 * f"Task {session}: make the failing test of module {session} pass. "
        for number in range(turns):
            answer = f"THOUGHT: look at file {number}.\n```bash\ncat file_{number}.py\n```"
            row = {"timestamp": 10_000 * number, "input": text, "output": answer}
            lines.append(json.dumps(row | {"session_id": f"s{session}"}))
            text += f"\n<output>\nline {number} of session {session}: ünïcode\n</output>"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def figures(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["agentrt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json", "--quiet"])
    assert not ended.value.code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("scale", ["1", "0.5"])
def test_literal_sessions_hit_what_an_infinite_cache_would(
    capsys, monkeypatch, tmp_path, tiny_model, scale
):
    result = figures(
        *(capsys, monkeypatch, "bench", "run", sessions(tmp_path / "s.jsonl")),
        *("--model", tiny_model, "--token-scale", scale, "--pool", "16384"),
        *("--out", str(tmp_path / "out")),
    )
    found = result["policies"]["fixed-ttl=30"]
    assert found["programs"] == {"finished": 3}
    assert found["turns"] == 15
    assert found["prefix_hit_share"] >= 0.9
    assert found["pins"]["handed_off"] == 12
    # The facts of a literal replay are the tokenizer's counts, not estimates.
    assert result["workload"]["ideal_tokens"] == found["ideal_tokens"]
    record = json.loads((tmp_path / "out" / "runs" / "fixed-ttl=30-0.json").read_text())
    assert all(row["text"].startswith("THOUGHT") for row in record["turns"])
    assert all(row["reason"] == "stop" for row in record["turns"])


@pytest.mark.requires_data
def test_pins_beat_recency_under_pressure(capsys, monkeypatch, tmp_path, shared_data):
    """The order of the published table, on a part of the workload that runs in seconds."""
    result = figures(
        *(capsys, monkeypatch, "bench", "compare"),
        str(shared_data / "agentcgroup" / "glm.jsonl"),
        *("--engine", "simulated", "--cost", "reference-8b", "--pool", "250000"),
        *("--rate", "0.02", "--limit", "25", "--seed", "1", "--max-wait", "inf"),
        *("--policies", "fcfs,fixed-ttl=2,fixed-ttl=30", "--out", str(tmp_path)),
    )
    fcfs, short, long = (
        result["policies"][name] for name in ("fcfs", "fixed-ttl=2", "fixed-ttl=30")
    )
    assert fcfs["jct_mean"] > short["jct_mean"] > long["jct_mean"]
    assert fcfs["prefill_ratio"] > short["prefill_ratio"] > long["prefill_ratio"]
    assert {row["ideal_tokens"] for row in result["policies"].values()} == {fcfs["ideal_tokens"]}
    assert {row["output_tokens"] for row in result["policies"].values()} == {fcfs["output_tokens"]}
    assert all(row["slowdown_p50"] >= 1.0 - 1e-9 for row in result["policies"].values())
