"""A short soak: some hundred tool calls with crashes of their runner, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "soak-tools"


@pytest.mark.requires_root
def test_nothing_is_left_behind_calls_and_crashes(tmp_path):
    out = tmp_path / "soak.json"
    command = [sys.executable, str(SCRIPT), "--calls", "240", "--crashes", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    told = json.loads(out.read_text())
    assert told["left"]["cgroups"] == []
    assert told["left"]["processes"] == []
    assert told["left"]["files"] == []
    assert told["left"]["descriptors"] == 0
    assert not any((told["left"]["bpf"] or {}).values())
    assert told["wrong"] == []
    assert told["crashes"] == 2
    assert told["calls"] >= 240
    assert done.returncode == 0
