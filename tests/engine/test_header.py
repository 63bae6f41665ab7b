"""Headers of safetensors files: read without the library, and checked against the file's length."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from agentrt.engine.model.header import read_header
from agentrt.errors import ModelError


def write(file: Path, header: object, data: int = 0) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(0, 4, dtype=torch.bfloat16),
        "c": torch.zeros((), dtype=torch.float16),
        "d": torch.zeros(5, dtype=torch.uint8),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    found = read_header(file)
    shapes = {name: entry.shape for name, entry in found.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert {name: entry.dtype for name, entry in found.items()} == {
        "a": "F32",
        "b": "BF16",
        "c": "F16",
        "d": "U8",
    }


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ([], 0, "no JSON object"),
        ({"a": 3}, 0, "its entry for a is no object"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, 8, "is garbled"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8, "is garbled"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8, "8 bytes, not 12"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 7, "7 bytes follow"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 9, "9 bytes follow"),
        ({"a": {"dtype": "Q4", "shape": [2], "data_offsets": [8, 0]}}, 0, "takes -8 bytes"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, data: int, words: str) -> None:
    file = tmp_path / "x.safetensors"
    write(file, header, data)
    with pytest.raises(ModelError, match=words) as caught:
        read_header(file)
    assert str(file) in caught.value.message
    assert caught.value.remedy


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 200), noise=st.binary(max_size=20), at=st.integers(0, 200))
def test_no_damage_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes, at: int
) -> None:
    whole = save({"layer.weight": torch.ones(4, 4), "bias": torch.ones(3)})
    damaged = (whole[:at] + noise + whole[at + len(noise) :])[: len(whole) - cut]
    file = tmp_path_factory.mktemp("damage") / "x.safetensors"
    file.write_bytes(damaged)
    with suppress(ModelError):
        read_header(file)


def test_a_file_larger_than_the_memory_is_described(tmp_path: Path) -> None:
    file, size = tmp_path / "x.safetensors", 2**41
    header = {"a": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with file.open("wb") as sink:
        sink.write(struct.pack("<Q", len(text)) + text)
        sink.truncate(8 + len(text) + size)
    assert read_header(file)["a"].shape == (size // 2,)
