"""``scripts/demo`` and ``setup``: what they say when something is missing, installing once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

FAKE_PYTHON = """#!/bin/sh
# Stands in for Python and, once `-m venv` has copied it, for the one in .venv.
echo "$*" >> "$FAKE_LOG"
case "$*" in
    *"sys.version_info < "*) [ -z "$FAKE_OLD" ] ;;
    "-c import venv, ensurepip") [ -z "$FAKE_NO_VENV" ] ;;
    *"%d.%d"*) echo 3.12 ;;
    --version) echo Python 3.9.2 ;;
    "-m venv --clear "*)
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip install"*) [ -z "$FAKE_PIP_FAILS" ] || { echo no network >&2; exit 1; } ;;
    "-c import pip") ;;
    "- "*) cat > /dev/null; echo digest-of "$@" ;;
    *"/bin/agentrt demo"*) echo "DEMO $*" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class Checkout:
    """A copy of the script in a checkout of its own, with a PATH of only what it may use."""

    def __init__(self, base: Path) -> None:
        self.root = base / "a check out"
        (self.root / "scripts").mkdir(parents=True)
        for script in ("demo", "setup"):
            shutil.copy(SCRIPTS / script, self.root / "scripts" / script)
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.bin = base / "bin"
        self.bin.mkdir()
        for tool in ("sh", "cat", "rm", "mkdir", "cp", "dirname", "pwd"):
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        self.log = base / "log"

    def add_python(self, name: str = "python3") -> None:
        (self.bin / name).write_text(FAKE_PYTHON)
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        fakes = dict.fromkeys(("FAKE_OLD", "FAKE_NO_VENV", "FAKE_PIP_FAILS"), "")
        return subprocess.run(
            [str(self.root / "scripts" / "demo"), *arguments],
            env={"PATH": str(self.bin), "FAKE_LOG": str(self.log), **fakes, **env},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )

    def installs(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "-m pip install" in line]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_no_python(checkout):
    done = checkout.run()
    assert done.returncode == 2
    assert "Python 3.11 or newer" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_old_python(checkout):
    checkout.add_python()
    done = checkout.run(FAKE_OLD="1")
    assert done.returncode == 2
    assert "this machine has: Python 3.9.2" in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_no_venv_module(checkout):
    checkout.add_python()
    done = checkout.run(FAKE_NO_VENV="1")
    assert done.returncode == 2
    assert "apt-get install python3-venv" in done.stderr


def test_installs_torch_first_then_agentrt_and_passes_arguments_on(checkout):
    checkout.add_python()
    done = checkout.run("--json", "--only", "a b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DEMO ")
    assert done.stdout.strip().endswith("/a check out/.venv/bin/agentrt demo --json --only a b")
    torch, own = checkout.installs()
    assert torch.endswith(" torch==2.13.0")
    assert own.endswith(" -e .[all]")


def test_a_second_run_installs_nothing(checkout):
    checkout.add_python()
    checkout.run()
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert checkout.installs() == []
    assert done.stderr == ""


def test_another_torch_is_installed_with_its_options(checkout):
    checkout.add_python()
    checkout.run()
    checkout.run(AGENTRT_TORCH="torch --extra-option here")
    assert checkout.installs()[0].endswith(" torch --extra-option here")


def test_a_failed_installation_is_started_anew(checkout):
    checkout.add_python()
    done = checkout.run(FAKE_PIP_FAILS="1")
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert done.stdout == ""
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert "-m venv --clear" in checkout.log.read_text()
    assert len(checkout.installs()) == 2


def test_a_broken_environment_is_made_anew(checkout):
    checkout.add_python()
    checkout.run()
    (checkout.root / ".venv" / "bin" / "python").unlink()
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert len(checkout.installs()) == 2


def test_a_newer_python_beside_an_old_one_is_found(checkout):
    checkout.add_python("python3.13")
    (checkout.bin / "python3").write_text("#!/bin/sh\nexit 1\n")
    (checkout.bin / "python3").chmod(0o755)
    done = checkout.run()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["demo", "setup"])
def test_is_a_posix_script(script):
    shell = shutil.which("dash") or "/bin/sh"
    assert subprocess.run([shell, "-n", str(SCRIPTS / script)], timeout=10).returncode == 0
    assert os.access(SCRIPTS / script, os.X_OK)
