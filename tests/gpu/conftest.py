"""Tests of the engine on CUDA. Elsewhere they are skipped, and say so."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import tiny_models  # noqa: F401 - a fixture

REASON = "cuda: there is no CUDA device"


def pytest_collection_modifyitems(items):
    """Skip what needs a device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture
def device():
    """The device that is tested."""
    return torch.device("cuda")
