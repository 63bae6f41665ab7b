"""A test that cannot run says why; one that is required to run fails instead."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sandbox.conftest import REPOSITORY

SAMPLE = """
import pytest

@pytest.mark.requires_bwrap
def test_needs_bwrap():
    pass
"""


@pytest.mark.parametrize(
    ("require", "outcome"), [("docker", "1 skipped"), ("root,bwrap", "1 error")]
)
def test_skip_or_fail(tmp_path, require, outcome):
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests" / "conftest.py").read_text())
    env = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": "/nonexistent",
        "AGENTRT_REQUIRE": require,
    }
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(tmp_path)]
    options = ["-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words, *options], capture_output=True, text=True, env=env, timeout=100
    )
    assert outcome in done.stdout
    assert "bubblewrap is not installed" in done.stdout
