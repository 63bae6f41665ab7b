"""Triton's kernels on the CPU, in its interpreter, or on CUDA where there is one.

Whether kernels are interpreted is settled when Triton is imported, for good: so it is decided here,
where tests are collected and before any of them runs. Nothing else in the suite imports Triton.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

CUDA = torch.cuda.is_available()

if not CUDA:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before TRITON_INTERPRET could be set.")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small work on one thread: several would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
