"""Tracing by bcc: finding the tool call, and clear words where bcc does not work."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agentrt.errors import BackendUnavailable, ConfigError
from agentrt.resources import trace as tracing
from agentrt.resources.cgroup import Hierarchy, Layout
from agentrt.resources.trace import find_tool_call, system_bcc, trace


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("run-1/box-a/tool-1", "run-1/box-a/tool-2", "run-1/box-b/tool-2"):
        (tmp_path / "agentrt" / name).mkdir(parents=True)
    return Layout((Hierarchy(2, tmp_path, tmp_path),))


def test_by_name_part_of_the_path_and_path(layout: Layout, tmp_path: Path):
    first = tmp_path / "agentrt/run-1/box-a/tool-1"
    assert find_tool_call("tool-1", layout) == first
    assert find_tool_call(str(first), layout) == first
    assert find_tool_call("box-b/tool-2", layout) == tmp_path / "agentrt/run-1/box-b/tool-2"


def test_what_is_not_there_or_not_unique(layout: Layout):
    with pytest.raises(ConfigError, match="No running tool call is called 'tool-9'"):
        find_tool_call("tool-9", layout)
    with pytest.raises(ConfigError, match="not unique"):
        find_tool_call("tool-2", layout)
    with pytest.raises(ConfigError, match="No cgroup v2 tree"):
        find_tool_call("tool-1", Layout())


def test_only_the_real_bcc_counts(tmp_path: Path):
    package = tmp_path / "bcc" / "__init__.py"
    assert system_bcc((tmp_path,)) is None
    package.parent.mkdir()
    package.write_text("# Bayesian changepoint detection")
    assert system_bcc((tmp_path,)) is None
    package.write_text("class BPF(object):\n    pass\n")
    assert system_bcc((tmp_path,)) == package.parent


def test_without_bcc_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "system_bcc", lambda: None)
    with pytest.raises(BackendUnavailable, match="apt-get install python3-bpfcc"):
        trace(tmp_path, 1.0)


def test_bccs_own_words_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python3"
    python.write_text(
        "#!/bin/sh\necho 'Unable to find kernel headers' >&2\necho trace >&2\nexit 1\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(tracing, "system_bcc", lambda: tmp_path)
    monkeypatch.setattr(tracing, "PYTHON", python)
    with pytest.raises(BackendUnavailable, match="Unable to find kernel headers"):
        trace(tmp_path, 0.1)


def test_the_result_of_bcc_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python3"
    result = '{"files": {"a": 2}, "block_bytes": {"read": 4096}, "stacks": {"sh;main": 3}}'
    python.write_text(f"#!/bin/sh\necho noise\necho '{result}'\n")
    python.chmod(0o755)
    monkeypatch.setattr(tracing, "system_bcc", lambda: tmp_path)
    monkeypatch.setattr(tracing, "PYTHON", python)
    seen = trace(tmp_path, 0.1)
    assert (seen.files, seen.block_bytes, seen.stacks) == ({"a": 2}, {"read": 4096}, {"sh;main": 3})


def test_the_script_compiles_under_the_distributions_python():
    if not tracing.PYTHON.exists():
        pytest.skip(f"no {tracing.PYTHON}")
    command = [str(tracing.PYTHON), "-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())"]
    done = subprocess.run([*command, str(tracing.SCRIPT)], timeout=30, check=False)
    assert done.returncode == 0
