"""``agentrt demo`` from the outside: a real engine, real sandboxes, files, exit codes, Ctrl-C."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentrt.bench.records import RunRecord
from agentrt.cli.main import app
from agentrt.demo.recording import RECORDINGS
from agentrt.errors import ConfigError, WorkloadError


def run(*arguments: str):
    return CliRunner().invoke(app, ["demo", *arguments])


def demo(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "agentrt", "demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_json_report_and_results(tmp_path):
    out = tmp_path / "the output"
    process = demo("--only", "page-window", "--sandbox", "process", "--out", out, "--json")
    printed, progress = process.communicate(timeout=110)
    assert process.returncode == 0, progress
    figures = json.loads(printed)
    assert printed.count("\n") == 1
    assert figures["programs"] == figures["resolved"] == 1
    assert (figures["turns"], figures["tool_calls"]) == (7, 6)
    assert 0 < figures["prefix_hit_tokens"] < figures["prompt_tokens"]
    assert figures["sandbox"] == "process"
    assert Path(figures["report"]) == out / "report.html"
    assert "page-window" in (out / "report.html").read_text(encoding="utf-8")
    assert "nonsense" in progress
    assert "resolved 1/1" in progress

    record = RunRecord.from_json(json.loads((out / "results.json").read_text())["run"])
    assert record.complete
    assert record.pool_tokens > 0
    # All but the rounding to whole pages is found again: the prompts grow at their end only.
    for before, turn in itertools.pairwise(record.turns):
        assert turn.cached_tokens > before.prompt_tokens + before.output_tokens - 17
    assert {row.status for row in record.tools} == {"exited"}


def test_a_recording_without_its_fix_is_unresolved(tmp_path):
    told = json.loads((RECORDINGS / "page-window.jsonl").read_text(encoding="utf-8"))
    edits = [turn for turn in told["turns"] if turn.get("tools", [{}])[0].get("kind") == "edit"]
    assert edits
    told["turns"] = [turn for turn in told["turns"] if turn not in edits]
    (tmp_path / "broken.jsonl").write_text(json.dumps(told), encoding="utf-8")
    arguments = ("--recordings", tmp_path, "--sandbox", "process", "--out", tmp_path / "out")
    process = demo(*arguments, "--json")
    printed, progress = process.communicate(timeout=110)
    assert process.returncode == 1, progress
    figures = json.loads(printed)
    assert (figures["programs"], figures["resolved"]) == (1, 0)
    assert figures["outcomes"]["page-window"]["detail"] == "tests fail (exit code 1)"


def test_ctrl_c_keeps_what_was_done_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    process = demo("--out", out, "--sandbox", "process", "--only", "page-window")
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "turn 1/7" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    shown = "".join(lines) + rest
    assert process.returncode == 130, shown + errors
    assert "Traceback" not in shown + errors
    assert "Interrupted" in shown
    assert "cancelled" in shown
    results = json.loads((out / "results.json").read_text())
    assert results["summary"]["complete"] is False
    assert results["run"]["programs"][0]["outcome"] == "cancelled"
    assert (out / "report.html").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_unknown_name_and_bad_directory_are_told_before_anything_is_loaded(tmp_path):
    found = run("--only", "nobody", "--out", str(tmp_path))
    assert isinstance(found.exception, ConfigError)
    assert "page-window" in found.exception.remedy
    (tmp_path / "file").write_text("")
    found = run("--out", str(tmp_path / "file"))
    assert isinstance(found.exception, ConfigError)
    assert "--out" in found.exception.remedy


def test_malformed_recording(tmp_path):
    (tmp_path / "x.jsonl").write_text("{")
    found = run("--recordings", str(tmp_path), "--out", str(tmp_path / "out"))
    assert isinstance(found.exception, WorkloadError)


def test_foreign_recordings_are_not_trusted():
    from agentrt.cli.demo import _config, _Options

    own = _Options(Path("out"), (), None, "fcfs", "auto", None, None, 0, host_kv=None)
    assert _config(own).trusted
    assert not _config(replace(own, recordings=Path("elsewhere"))).trusted


def test_help_has_an_example():
    found = run("--help")
    assert found.exit_code == 0
    assert "Example" in found.output
