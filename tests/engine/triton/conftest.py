"""Triton's kernels on the CPU, in its interpreter, or on CUDA where there is one.

Whether kernels are interpreted is settled when Triton is imported, for good: so it is decided here,
where tests are collected and before any of them runs. Nothing else in the suite imports Triton.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CUDA = torch.cuda.is_available()

if not CUDA:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before TRITON_INTERPRET could be set.")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _small_work(one_thread):
    """What several threads do is asked for where it is tested."""


@pytest.fixture(scope="session")
def compiled():
    """``compiled(module)``: what a module of this folder reports of kernels that it compiled.

    In a process of its own, as this one may interpret.
    """
    root = Path(__file__).resolve().parents[3]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def report(module: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.engine.triton.{module}"],
            cwd=root,
            env=inherited | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told: list[dict[str, Any]] = json.loads(done.stdout)
        return told

    return report


@pytest.fixture(scope="session")
def device():
    """Where the kernels run; allocates for the interpreter what it needs."""
    from agentrt.engine.triton.device import check_device

    where = torch.device("cuda" if CUDA else "cpu")
    check_device(where)
    return where


@pytest.fixture(scope="session")
def configs():
    """Block sizes: those that ship on CUDA; few programs, and many blocks, in the interpreter."""
    from agentrt.engine.triton.configs import CONFIGS, TileConfig

    if CUDA:
        return CONFIGS
    small = TileConfig(rows=32, keys=16, warps=4, stages=2)
    return dict.fromkeys(CONFIGS, small)
