"""`agentrt bench` as a user types it."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from agentrt.bench.parse import read_workload
from agentrt.bench.progress import ComparisonView
from agentrt.cli.main import main
from tests.bench.builders import small_workload, write_workload_file


@pytest.fixture
def tiny(tmp_path):
    return str(write_workload_file(tmp_path / "tiny.jsonl", small_workload()))


def call(monkeypatch, *arguments: str) -> int:
    """Run a command line and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["agentrt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


SIMULATED = ("--engine", "simulated", "--rate", "1", "--pool", "640")


def test_compare_prints_one_json_object(monkeypatch, capsys, tmp_path, tiny):
    out = tmp_path / "out"
    code = call(
        monkeypatch,
        *("bench", "compare", tiny, *SIMULATED, "--policies", "fcfs,fixed-ttl=2"),
        *("--seeds", "2", "--out", str(out), "--json"),
    )
    assert code == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert list(printed["policies"]) == ["fcfs", "fixed-ttl=2"]
    saved = json.loads((out / "results.json").read_text())
    assert printed["policies"] == saved["policies"]
    assert saved["settings"]["seeds"] == [0, 1]
    assert "fcfs seed 1: done" in captured.err
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    about = json.loads((out / "about.json").read_text())
    assert about["command"].startswith("agentrt bench compare")
    assert about["machine"]["cpus"] >= 1


def test_run_shows_a_summary_and_where_it_is(monkeypatch, capsys, tmp_path, tiny):
    out = tmp_path / "out"
    arguments = ("bench", "run", tiny, *SIMULATED, "--policy", "fcfs", "--out", str(out))
    assert call(monkeypatch, *arguments) == 0
    captured = capsys.readouterr()
    assert "completion time mean" in captured.out
    assert "results.json" in captured.out
    assert call(monkeypatch, *arguments, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert call(monkeypatch, *arguments) == 0
    assert "reused from an earlier run" in capsys.readouterr().err


def test_without_out_a_new_directory_is_made(monkeypatch, capsys, tmp_path, tiny):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "bench", "run", tiny, *SIMULATED, "--json", "--quiet") == 0
    where = tmp_path / json.loads(capsys.readouterr().out)["out"]
    assert where.parent == tmp_path / "agentrt-results"
    assert (where / "results.json").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--policies", "lifo"), "program-fcfs"),
        (("--policies", "fixed-ttl=soon"), "fixed-ttl=30"),
        (("--pools", "1,x"), "--pools"),
        (("--rates", "1"), "Both --rate"),
        (("--weights", "a"), "NAME=NUMBER"),
        (("--jobs", "0"), "--jobs"),
        (("--arrivals", "burst"), "mooncake:FILE"),
        (("--cost", "reference-70b"), "reference-8b"),
        (("--engine", "warp"), "live, simulated"),
        (("--contexts", "some"), "main, all"),
        (("--seeds", "0"), "--seeds"),
        (("--rate", "0"), "--rate"),
        (("--pool", "-1"), "--pool"),
        (("--token-scale", "0"), "--token-scale"),
        (("--bogus",), "--bogus"),
    ],
)
def test_wrong_input_names_the_remedy_and_exits_2(monkeypatch, capsys, tmp_path, tiny, wrong, said):
    base = ("bench", "compare", tiny, *SIMULATED, "--out", str(tmp_path / "out"), "--json")
    assert call(monkeypatch, *base, *wrong) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_missing_workload_exits_2(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, "bench", "run", str(tmp_path / "none.jsonl")) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_other_settings_in_the_same_directory_exit_2(monkeypatch, capsys, tmp_path, tiny):
    base = ("bench", "run", tiny, *SIMULATED, "--out", str(tmp_path / "out"), "--quiet")
    assert call(monkeypatch, *base) == 0
    assert call(monkeypatch, *base, "--max-wait", "3") == 2
    assert "--fresh" in capsys.readouterr().err
    assert call(monkeypatch, *base, "--max-wait", "inf", "--fresh") == 0


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(monkeypatch, capsys, tmp_path, tiny):
    out = tmp_path / "out"
    base = ("bench", "compare", tiny, *SIMULATED, "--policies", "fcfs,program-fcfs")
    real = ComparisonView.started

    def press_ctrl_c(view, policy, seed):
        real(view, policy, seed)
        if policy == "program-fcfs":
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(ComparisonView, "started", press_ctrl_c)
        assert call(patched, *base, "--out", str(out)) == 130
    assert signal.getsignal(signal.SIGINT) == before
    said = capsys.readouterr().err
    assert "interrupted" in said
    assert str(out) in said
    results = json.loads((out / "results.json").read_text())
    complete = {name: figures["complete"] for name, figures in results["policies"].items()}
    assert (results["complete"], complete) == (False, {"fcfs": True, "program-fcfs": False})
    assert (out / "report.html").exists()

    assert call(monkeypatch, *base, "--out", str(out)) == 0
    said = capsys.readouterr().err
    assert "fcfs seed 0: reused" in said
    assert "program-fcfs seed 0: done" in said


def test_a_run_in_which_every_program_fails_exits_1(monkeypatch, capsys, tmp_path, tiny):
    base = ("bench", "run", tiny, "--engine", "simulated", "--pool", "16")
    assert call(monkeypatch, *base, "--out", str(tmp_path / "out")) == 1
    assert "4 programs failed" in capsys.readouterr().err


def test_import_writes_a_workload(monkeypatch, capsys, tmp_path):
    source = tmp_path / "s.jsonl"
    row = {"timestamp": 1, "input": "abc", "output": "def", "session_id": "s"}
    source.write_text(json.dumps(row) + "\n")
    target = tmp_path / "w.jsonl"
    base = ("bench", "import", "miniswe", str(source), "-o", str(target))
    assert call(monkeypatch, *base, "--json") == 0
    assert json.loads(capsys.readouterr().out)["programs"] == 1
    assert read_workload(target).literal
    assert call(monkeypatch, "bench", "import", "burst", str(source), "-o", str(target)) == 2


@pytest.mark.parametrize("command", ["run", "compare", "capacity", "ablate", "import"])
def test_help_has_an_example(monkeypatch, capsys, command):
    assert call(monkeypatch, "bench", command, "--help") == 0
    assert "Example: agentrt bench" in capsys.readouterr().out
