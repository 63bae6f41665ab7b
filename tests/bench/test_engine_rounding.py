"""The measure of rounding: zero from itself, and ordered as the precisions are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentrt.bench.engine_rounding import Case, distance, measure_rounding
from agentrt.engine.model.make import make_model


def test_distances() -> None:
    right = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    same = distance(right, right)
    assert (same.relative, same.same_first) == (0, 1)
    assert abs(same.divergence) < 1e-6
    other = distance(-right, right)
    assert other.relative == pytest.approx(2)
    assert other.divergence > 0.1
    assert other.same_first < 1


def test_rows_of_a_tiny_model(tmp_path: Path) -> None:
    make_model(tmp_path / "tiny", "qwen3", "tiny", 0, dtype="float32")
    cases = (
        Case("float32"),
        Case("float32", None, "int8"),
        Case("float32", None, "fp8"),
        Case("float32", "fp8"),
        Case("float32", "int8"),
    )
    rows = measure_rounding({"tiny": tmp_path / "tiny"}, cases, sequences=2, prompt=40, steps=4)
    exact, int8, fp8, weights, failed = rows
    assert exact["from_fp32"]["relative"] == 0
    assert 0 < int8["from_fp32"]["relative"] < fp8["from_fp32"]["relative"] < 0.5
    assert 0 < weights["from_fp32"]["relative"] < 0.5
    assert "bfloat16" in failed["failed"]
    assert exact["case"] == "float32, float32 weights, float32 KV"
