"""Tensors through a ring of buffers: all of them arrive, in order, within a bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from agentrt.engine.model import staging, weights
from agentrt.engine.model.fp8 import FP8, dequantize, quantize
from agentrt.engine.model.header import read_header
from agentrt.engine.model.staging import HostCopier, Run, Wanted, copy_runs, plan_runs
from agentrt.engine.model.targets import Fp8Rows, Repeated, Rows
from agentrt.engine.model.weights import load_model


class RingCopier:
    """A device that copies late: a buffer is read when it is asked for again, or at the end."""

    def __init__(self, size: int, buffers: int) -> None:
        self._host = [torch.empty(size, dtype=torch.uint8) for _ in range(buffers)]
        self._under_way: list[tuple[int, Run]] = []
        self._next = 0
        self.most_under_way = 0
        self.largest = 0

    def fill(self, run: Run, rows: torch.Tensor) -> None:
        place, self._next = self._next, (self._next + 1) % len(self._host)
        while any(held == place for held, _ in self._under_way):
            self._land()
        held = self._view(place, run)
        held.copy_(rows)
        self._under_way.append((place, run))
        self.most_under_way = max(self.most_under_way, len(self._under_way))
        self.largest = max(self.largest, run.nbytes)

    def _view(self, place: int, run: Run) -> torch.Tensor:
        return self._host[place][: run.nbytes].view(run.tensor.dtype).view(run.shape)

    def _land(self) -> None:
        place, run = self._under_way.pop(0)
        run.tensor.target.put(run.place, self._view(place, run).clone())

    def finish(self) -> None:
        while self._under_way:
            self._land()


def wanted(file: Path, targets: dict[str, object]) -> list[Wanted]:
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16}
    return [
        Wanted(file, name, entry.offset, entry.shape, kinds[entry.dtype], targets[name])
        for name, entry in read_header(file).items()
        if name in targets
    ]


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {
        "plain": torch.randn(13, 8),
        "half": torch.randn(7, 6).bfloat16(),
        "kept": torch.randn(10, 16),
        "norm": torch.randn(5),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", tensors


@pytest.mark.parametrize("buffers", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 40, 100, 1 << 20])
def test_everything_arrives_whatever_the_ring(file, buffers: int, limit: int) -> None:
    path, tensors = file
    plain, half = torch.zeros(13, 8), torch.zeros(7, 6)
    kept, scales = torch.zeros(10, 16).to(FP8), torch.zeros(10)
    norm = torch.zeros(3, 5, dtype=torch.bfloat16)
    targets = {
        "plain": Rows(plain),
        "half": Rows(half),
        "kept": Fp8Rows(kept, scales),
        "norm": Repeated(norm),
    }
    runs = list(plan_runs(wanted(path, targets), limit))
    copier = RingCopier(max(run.nbytes for run in runs), buffers)
    assert list(copy_runs(runs, copier)) == runs
    assert torch.equal(plain, tensors["plain"])
    assert torch.equal(half, tensors["half"].float())
    assert torch.equal(
        dequantize(kept, scales, torch.float32),
        dequantize(*quantize(tensors["kept"]), torch.float32),
    )
    assert torch.equal(norm, tensors["norm"].bfloat16().expand(3, 5))
    assert copier.most_under_way <= buffers
    assert copier.largest <= max(limit, 64)  # a row of the widest tensor has 64 bytes
    same = list(copy_runs(runs, HostCopier()))
    assert same == runs


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(1, 200),
)
def test_runs_cover_every_row_once_in_the_order_of_the_file(shapes, limit) -> None:
    tensors, offset = [], 100
    for number, shape in enumerate(shapes):
        place = Wanted(Path(f"f{number % 2}"), f"t{number}", offset, shape, torch.bfloat16, None)
        tensors.append(place)
        offset += 2 * shape[0] * shape[1]
    runs = list(plan_runs(tensors, limit))
    assert [(run.tensor.file, run.offset) for run in runs] == sorted(
        (run.tensor.file, run.offset) for run in runs
    )
    for place in tensors:
        mine = [run for run in runs if run.tensor is place]
        rows = [row for run in mine for row in range(run.start, run.stop)]
        assert rows == list(range(place.shape[0]))
        assert all(run.nbytes <= max(limit, place.row_bytes) for run in mine)


@pytest.mark.parametrize("limit", [1, 70, 1 << 20])
def test_parts_of_a_tensor(file, limit: int) -> None:
    path, tensors = file
    rows, columns, both = torch.zeros(4, 16), torch.zeros(10, 5), torch.zeros(3, 2)
    whole = wanted(path, {"kept": Rows(rows)})[0]
    parts = [
        replace(whole, rows=(3, 7)),
        replace(whole, columns=(6, 11), target=Rows(columns)),
        replace(whole, rows=(7, 10), columns=(0, 2), target=Rows(both)),
    ]
    runs = list(plan_runs(parts, limit))
    list(copy_runs(runs, RingCopier(max(run.nbytes for run in runs), 2)))
    assert torch.equal(rows, tensors["kept"][3:7])
    assert torch.equal(columns, tensors["kept"][:, 6:11])
    assert torch.equal(both, tensors["kept"][7:10, :2])


def test_the_kernel_reads_ahead_of_the_copies(file, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = file
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(staging, "_advise", lambda file, at, count: asked.append((at, count)))
    targets = {"plain": Rows(torch.zeros(13, 8)), "kept": Rows(torch.zeros(10, 16))}
    runs = list(plan_runs(wanted(path, targets), 64))
    lead = [len(asked) for _ in copy_runs(runs, HostCopier(), ahead=200)]
    assert asked == [(run.offset, run.nbytes) for run in runs]
    assert lead[0] > 1
    assert all(ahead >= min(place + 2, len(runs)) for place, ahead in enumerate(lead))


def test_loading_takes_no_second_copy_of_the_model(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is all that is taken beside the weights, and it does not grow with the model."""
    directory = tiny_models("qwen3")
    rings: list[RingCopier] = []

    def ring(tensors: list[Wanted], runs: list[Run]) -> RingCopier:
        rings.append(RingCopier(max(run.nbytes for run in runs), 3))
        return rings[-1]

    plain = load_model(directory)
    limit = 1 << 12
    monkeypatch.setattr(weights, "copier_for", ring)
    monkeypatch.setattr(weights, "plan_runs", lambda tensors: plan_runs(tensors, limit))
    said: list[tuple[int, int]] = []
    staged = load_model(directory, progress=lambda *now: said.append(now))
    (one,) = rings
    assert one.largest <= limit < plain._embed.weight.nbytes / 8
    assert torch.equal(staged._embed.weight, plain._embed.weight)
    for ours, theirs in zip(staged._layers, plain._layers, strict=True):
        assert torch.equal(ours.qkv.weight, theirs.qkv.weight)
        assert torch.equal(ours.qk_norm, theirs.qk_norm)
        assert torch.equal(ours.down.weight, theirs.down.weight)
    assert said == sorted(said)
    assert said[-1][0] == said[-1][1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_what_the_host_gets_and_little_more(
    tiny_models: Callable[..., Path],
) -> None:
    directory = tiny_models("qwen3")
    plain = load_model(directory)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    staged = load_model(directory, device="cuda")
    held = torch.cuda.memory_allocated() - before
    assert torch.cuda.max_memory_allocated() - before <= held + 3 * (64 << 20)
    assert torch.equal(staged._embed.weight.cpu(), plain._embed.weight)
    for ours, theirs in zip(staged._layers, plain._layers, strict=True):
        assert torch.equal(ours.gate_up.weight.cpu(), theirs.gate_up.weight)
