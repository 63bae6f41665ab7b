"""Compiles the kernels through torch's extension builder, once for each machine, torch and source.

A build takes place in a directory of its own and is renamed when whole, under a lock that its
process holds and the kernel releases: a build that was killed leaves nothing that others wait for.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

__all__ = ["FLAGS", "SOURCES", "BuildError", "build", "default_cache", "key"]

_logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "src"
NAME = "agentrt_native"
# The pragmas of torch's headers need -fopenmp; linking a second OpenMP runtime beside torch's would
# cost milliseconds at each parallel region, so the linker is told nothing and torch's is found.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-Wno-psabi")
LOCK_SECONDS = 600.0


class BuildError(Exception):
    """The kernels could not be compiled; the text says why."""


def default_cache() -> Path:
    """Return agentrt's cache directory, as the default model's (``default_model_dir``)."""
    own, general = os.environ.get("AGENTRT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    base = Path(general) if general else Path.home() / ".cache"
    return Path(own) if own else base / "agentrt"


def key(flags: Sequence[str], torch_version: str) -> str:
    """Return what a build depends on, hashed: sources, flags, torch, compiler and processor."""
    parts = [torch_version, *flags, os.environ.get("CXX", ""), platform.machine(), _cpu_flags()]
    parts += [source.read_text(encoding="utf-8") for source in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu_flags() -> str:
    """Return the processor's features as the kernel lists them: what ``native`` compiles for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join(sorted(set(found)))


def build(cache: Path, flags: Sequence[str], torch_version: str) -> tuple[Path, str]:
    """Return the library's file and its key, compiling it if it is not in ``cache``.

    Raises:
        BuildError: no compiler, an error of the compiler, or a cache that cannot be written.
    """
    name = key(flags, torch_version)
    done = cache / "native" / name
    library = done / f"{NAME}.so"
    try:
        if not library.is_file():
            done.parent.mkdir(parents=True, exist_ok=True)
            with _locked(done.parent / f"{name}.lock"):
                if not library.is_file():
                    _logger.warning("Compiling the CPU kernels into %s: once, half a minute.", done)
                    _build_at(done, name, flags)
    except OSError as error:
        raise BuildError(f"{done}: {error.strerror or error}") from error
    return library, name


@contextmanager
def _locked(
    file: Path,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock on ``file``; who holds it longer than any build takes is an error."""
    deadline = clock() + LOCK_SECONDS
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if clock() > deadline:
                    raise BuildError(f"another process holds {file} since minutes") from error
                sleep(0.2)
        yield


def _build_at(done: Path, name: str, flags: Sequence[str]) -> None:
    work = Path(mkdtemp(prefix=f"{name}.", dir=done.parent))
    try:
        _compile(work, name, flags)
        for file in work.iterdir():
            if file.suffix == ".so":
                file.rename(work / f"{NAME}.so")
            else:
                file.unlink()
        work.chmod(0o755)
        shutil.rmtree(done, ignore_errors=True)
        work.rename(done)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compile(work: Path, name: str, flags: Sequence[str]) -> None:
    try:
        from torch.utils import cpp_extension

        # Loading comes with building; the operators' namespace has the key in it, so that builds
        # for other flags can be loaded beside.
        cpp_extension.load(
            f"agentrt_{name}",
            [str(SOURCES / "ops.cpp")],
            extra_cflags=[*flags, f"-DAGENTRT_NATIVE=agentrt_{name}"],
            build_directory=str(work),
            is_python_module=False,
        )
    except ImportError as error:
        raise BuildError(f"torch's extension builder needs the package {error.name}") from error
    except subprocess.SubprocessError as error:
        raise BuildError(f"the compiler cannot be run: {error}") from error
    except RuntimeError as error:
        raise BuildError(_reason(str(error))) from error


def _reason(text: str) -> str:
    """Return the line of the compiler's output that says what is wrong."""
    lines = text.splitlines()
    wrong = [line.strip() for line in lines if " error: " in line or "not found" in line]
    return wrong[0] if wrong else (lines[0] if lines else "it failed without a word")
