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


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if CUDA else "cpu")
