"""``agentrt sandbox`` as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from agentrt.cli.sandbox import app, parse_cpu, parse_pids, parse_seconds, parse_size
from agentrt.errors import ConfigError
from tests.sandbox.conftest import REPOSITORY

MAIN = """
import sys
from agentrt.cli.sandbox import app
from agentrt.errors import AgentRTError
try:
    app()
except AgentRTError as error:
    sys.exit(f"error: {error}")
"""


def start(*words: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": tempfile.gettempdir()}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        env=env,
    )


def run(*words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    with start(*words) as process:
        out, err = process.communicate(stdin, timeout=100)
        return process.returncode, out, err


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("2g", 2 << 30), ("1.5G", 3 << 29), ("64MiB", 64 << 20), ("1024", 1024)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@given(st.text())
def test_any_text_is_a_value_or_a_clear_error(text):
    for parse in (parse_size, parse_cpu, parse_seconds, parse_pids):
        with contextlib.suppress(ConfigError):
            assert parse(text) > 0


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_size, "5x"),
        (parse_size, "-1m"),
        (parse_size, "0"),
        (parse_size, ""),
        (parse_cpu, "nan"),
        (parse_cpu, "0"),
        (parse_cpu, "inf"),
        (parse_seconds, "s"),
        (parse_seconds, "-3"),
        (parse_pids, "1.5"),
        (parse_pids, "0"),
    ],
)
def test_wrong_values_name_the_remedy(parse, text):
    with pytest.raises(ConfigError, match="Write it as"):
        parse(text)


def test_durations():
    assert (parse_seconds("30"), parse_seconds("5m"), parse_seconds("1.5h")) == (30, 300, 5400)


def test_exec_passes_output_and_code_on():
    code, out, err = run(
        "exec", "--kind", "process", "--", "sh", "-c", "echo o; echo e >&2; exit 9"
    )
    assert (code, out) == (9, b"o\n")
    assert err.startswith(b"e\n")
    assert b"not enforced: network" in err


def test_exec_reads_stdin_and_source(tmp_path):
    (tmp_path / "file").write_text("from source ")
    words = ("exec", "--kind", "process", "--network", "host", "--stdin", "--source", str(tmp_path))
    code, out, err = run(*words, "cat", "file", "-", stdin=b"from stdin")
    assert (code, out, err) == (0, b"from source from stdin", b"")


def test_exec_json_and_timeout():
    code, out, _ = run("exec", "--kind", "process", "--timeout", "0.5", "--json", "sleep", "1000")
    assert code == 124
    found = json.loads(out)
    assert (found["status"], found["exit_code"], found["sandbox"]) == ("timeout", None, "process")
    assert "does not confine" in found["why"][0]


@pytest.mark.parametrize(
    "words",
    [
        ("--memory", "lots", "true"),
        ("--network", "some", "true"),
        ("--kind", "jail", "true"),
        ("--kind", "process", "--source", "/absent/place", "true"),
        ("--kind", "process", "no-such-program"),
    ],
)
def test_wrong_use_is_an_error_with_a_remedy(words):
    code, out, err = run("exec", *words)
    assert code == 1  # the command group's main turns it into 2
    assert out == b""
    assert err.startswith(b"error: ")
    assert b"Traceback" not in err


def test_check_says_what_works():
    done = CliRunner().invoke(app, ["check", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert set(found) == {"docker", "bubblewrap", "process"}
    assert found["process"]["ok"]
    assert not found["docker"]["ok"]
    assert found["docker"]["remedy"]
    assert "filesystem" in found["process"]["missing"]
    assert "process" in CliRunner().invoke(app, ["check"]).stdout


def test_gc_with_nothing_to_do():
    done = CliRunner().invoke(app, ["gc", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["runs"] == []
    assert "removed 0 dead runs" in CliRunner().invoke(app, ["gc"]).stdout


def test_ctrl_c(tracer, own_state):
    with start("exec", "--kind", "process", "--", "sh", "-c", f"sleep {tracer.number}") as process:
        for _ in range(2000):
            if any("sleep" in _words(pid)[0] for pid in tracer.alive()):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert tracer.alive() == []
    assert list(own_state.iterdir()) == []


def _words(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().split("\0")
    except OSError:
        return [""]
