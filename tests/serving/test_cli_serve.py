"""``agentrt serve`` from the command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from agentrt.cli.main import main
from agentrt.engine.model.make import make_model
from agentrt.serving.server import bind
from tests.serving.fakes import PATIENCE


@contextmanager
def started(model: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server on a free port and return it with its URL, as it prints it."""
    command = [sys.executable, "-m", "agentrt", "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(
        [*command, "--pool", "8192", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    ) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while (found := re.search(r"http://\S+/v1", printed)) is None:
                line = process.stdout.readline()
                assert line, f"ended without a URL: {printed}"
                printed += line
            yield process, found.group()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory, size="tiny", dtype="float32")
    return directory


def test_serves_until_it_is_told_to_stop(tiny: Path) -> None:
    with started(tiny) as (process, url):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=PATIENCE)
        assert answer.json()["model"] == "tiny"
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert printed.rstrip().endswith("Stopped.")


def test_a_second_signal_ends_running_turns(tiny: Path) -> None:
    with started(tiny, "--drain", "3600") as (process, url):
        body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            assert next(lines)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2] == "data: [DONE]"
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "Traceback" not in printed


class TestWrongInput:
    def fails(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["serve", *arguments])
        assert caught.value.code == 2
        return capsys.readouterr().err

    def test_a_port_in_use(self, capsys: pytest.CaptureFixture[str]) -> None:
        with bind("127.0.0.1", 0) as held:
            held.listen()
            port = held.getsockname()[1]
            message = self.fails(capsys, "--port", str(port))
        assert str(port) in message
        assert "--port 0" in message

    def test_a_missing_model(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        missing = tmp_path / "nothing"
        message = self.fails(capsys, "--port", "0", "--model", str(missing))
        assert str(missing) in message

    def test_a_wrong_policy(self, capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
        message = self.fails(capsys, "--port", "0", "--model", str(tiny), "--policy", "magic")
        assert "magic" in message

    @pytest.mark.parametrize("flags", [["--port", "x"], ["--port", "70000"], ["--frob"]])
    def test_bad_flags(self, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
        assert self.fails(capsys, *flags)

    def test_an_unreadable_key_file(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        missing = tmp_path / "keys"
        message = self.fails(capsys, "--port", "0", "--api-keys", str(missing))
        assert str(missing) in message

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[tenants.a]\nwieght = 3\n", "wieght"),
            ("[tenant.a]\nweight = 3\n", "tenant"),
            ("tenants = 3\n", "no table"),
            ("[tenants.a\n", "TOML"),
        ],
    )
    def test_a_wrong_configuration_file(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, problem: str
    ) -> None:
        path = tmp_path / "agentrt.toml"
        path.write_text(text)
        message = self.fails(capsys, "--port", "0", "--config", str(path))
        assert str(path) in message
        assert problem in message


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    assert "agentrt serve --port 8000" in capsys.readouterr().out
