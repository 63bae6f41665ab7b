"""Tests of the engine on CUDA. Elsewhere they are skipped, and say so."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import tiny_models  # noqa: F401 - a fixture


def pytest_collection_modifyitems(items):
    """All tests here need a device: they are skipped, or fail with ``AGENTRT_REQUIRE=cuda``."""
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.requires_cuda)


@pytest.fixture
def device():
    """The device that is tested."""
    return torch.device("cuda")
