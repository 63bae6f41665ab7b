"""Which Python a script runs on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentrt.bench.interpreter import use_environment


def test_what_is_there_is_used(tmp_path: Path) -> None:
    use_environment(tmp_path, ["json"])


def test_the_trees_own_environment_is_the_next(tmp_path: Path) -> None:
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    asked = []
    with pytest.raises(SystemExit):  # only where it cannot be started
        use_environment(
            tmp_path, ["no_such_package"], lambda path, args: asked.append((path, args))
        )
    assert asked == [(str(own), [str(own), *sys.argv])]


def test_without_one_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no no_such_package. Run scripts/setup"):
        use_environment(tmp_path, ["json", "no_such_package"])
