"""``agentrt exec`` as a shell user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentrt.cli.exec import intent_of
from agentrt.errors import ConfigError
from agentrt.resources.intent import Intent

pytestmark = pytest.mark.requires_root


def agentrt(*arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None):
    return subprocess.run(
        [sys.executable, "-m", "agentrt", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **(env or {})},
    )


def test_it_runs_here_with_our_environment_and_passes_on_what_it_gets(tmp_path: Path) -> None:
    done = agentrt(
        "exec", "--", "sh", "-c", "pwd; echo $MINE; exit 7", env={"MINE": "x"}, cwd=tmp_path
    )
    assert done.returncode == 7
    assert done.stdout == f"{tmp_path}\nx\n"


def test_what_stopped_it_is_said_on_stderr_and_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    use = "x = bytearray(300 << 20)"
    flags = ["--memory", "64m", "--on-limit", "kill", "--log", str(log)]
    done = agentrt("exec", *flags, "--", "python3", "-c", use)
    assert done.returncode == 137
    assert done.stderr.startswith("[Resource] The command ran out of memory: it may use 64m.")
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["oom_kills"] >= 1


def test_the_hint_declares_what_no_flag_does() -> None:
    done = agentrt(
        "exec",
        "--json",
        "--cpu",
        "1",
        "--",
        "true",
        env={"AGENT_RESOURCE_HINT": "memory:40m,on_limit:kill"},
    )
    assert json.loads(done.stdout)["resources"]["memory_limit"] == 40 << 20


def test_flags_of_the_command_are_its_own() -> None:
    done = agentrt("exec", "echo", "--memory", "-x")
    assert done.stdout == "--memory -x\n"


def test_sandboxed_commands_take_an_intent_too() -> None:
    done = agentrt(
        "sandbox",
        "exec",
        "--kind",
        "process",
        "--network",
        "host",
        "--intent",
        "memory:48m,on_limit:kill",
        "--json",
        "--",
        "true",
    )
    assert json.loads(done.stdout)["resources"]["memory_limit"] == 48 << 20
    wrong = agentrt("sandbox", "exec", "--intent", "colour:red", "--", "true")
    assert wrong.returncode == 2
    assert "colour:red" in wrong.stderr


def test_flags_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RESOURCE_HINT", "memory:1g,bad:1")
    assert intent_of(cpu="2", memory=None) == Intent(memory=1 << 30, cpu=2)
    with pytest.raises(ConfigError):
        intent_of(priority="urgent")


def test_the_server_offers_no_unconfined_tools() -> None:
    done = agentrt("serve", "--sandbox", "process")
    assert done.returncode == 2
    assert "does not confine" in done.stderr
    done = agentrt("serve", "--sandbox", "bubblewrap", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--api-keys" in done.stderr
