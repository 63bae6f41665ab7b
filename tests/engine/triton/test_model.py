"""Whole models on the Triton kernels give the tokens of the torch path, however they are cut."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

from agentrt.engine.attention import BatchLayout, SliceLayout, TorchPagedAttention
from agentrt.engine.attention.base import DecodeBuffers
from agentrt.engine.kernels import Kernels, choose_kernels, prepare, warm_up
from agentrt.engine.model.base import on_its_device
from agentrt.engine.model.triton_ops import TritonOps
from agentrt.engine.model.weights import load_model

PAGE = 4
PROMPT = torch.randint(4, 500, (9,), generator=torch.Generator().manual_seed(4)).tolist()
STEPS = 3
TORCH = Kernels("torch", "the oracle")
qwen3 = pytest.mark.parametrize("models", ["qwen3"], indirect=True)


@pytest.fixture(scope="module")
def triton(device):
    return choose_kernels("triton", str(device))


@pytest.fixture(scope="module")
def models(request, device, triton, tiny_models):
    """The same weights on the torch path and on Triton."""
    changes = {"sliding_window": 5} if request.param == "mistral" else {}
    directory = tiny_models(request.param, **changes)
    oracle, mine = (load_model(directory, device=device) for _ in range(2))
    prepare(mine, triton)
    assert isinstance(mine._ops, TritonOps)
    return oracle, mine


def forward(model, step, tokens, positions, rows):
    device = model.device
    ids, places, picked = (torch.tensor(x, device=device) for x in (tokens, positions, rows))
    return model.forward(ids, places, step, picked)


@pytest.fixture
def pool(configs):
    """Return ``pool(model, kernels, kv_dtype) -> attention``."""
    from agentrt.engine.attention.triton_paged import TritonPagedAttention

    def make(model, kernels, kv_dtype="auto"):
        shape = (model.config, 12, PAGE, model.dtype, model.device, kv_dtype)
        if kernels.kind == "torch":
            return TorchPagedAttention(*shape)
        return TritonPagedAttention(*shape, configs=configs)

    return make


def answer(model, attention, cuts, table):
    """Compute the prompt in ``cuts``, then greedy tokens; returns them and all last logits."""
    output, logits, start, sequence = [], [], 0, list(PROMPT)
    for count in [*cuts, *[1] * (STEPS - 1)]:
        step = attention.plan(BatchLayout((SliceLayout(start, count, table),)))
        part = sequence[start : start + count]
        [row] = forward(model, step, part, range(start, start + count), [count - 1])
        start += count
        if start >= len(PROMPT):
            output.append(int(row.argmax()))
            sequence.append(output[-1])
            logits.append(row)
    return output, torch.stack(logits)


@pytest.mark.parametrize(
    ("models", "cuts"),
    [("qwen3", (9,)), ("qwen3", (5, 1, 3)), ("mistral", (5, 1, 3))],
    indirect=["models"],
    ids=str,
)
def test_greedy_tokens_are_those_of_the_torch_path(models, triton, pool, cuts):
    oracle, mine = models
    table = [7, 3, 11]
    right, exact = answer(oracle, pool(oracle, TORCH), (9,), table)
    attention = pool(mine, triton)
    attention.kv.fill_(float("nan"))
    tokens, logits = answer(mine, attention, cuts, table)
    assert tokens == right
    assert float((logits - exact).norm() / exact.norm()) <= 1e-5


@qwen3
def test_mixed_batches_over_a_shared_prefix(models, triton, pool):
    """One sequence decodes, one goes on from the first's cached pages, one starts: in one step."""
    oracle, mine = models
    results = []
    for model, kernels in ((oracle, TORCH), (mine, triton)):
        attention = pool(model, kernels)
        answer(model, attention, (9,), [0, 1, 2])
        layout = BatchLayout(
            (
                SliceLayout(8, 3, [0, 1, 9]),
                SliceLayout(11, 1, [0, 1, 2]),
                SliceLayout(0, 7, [10, 11]),
            )
        )
        tokens = [*PROMPT[:3], 77, *PROMPT[:7]]
        positions = [8, 9, 10, 11, *range(7)]
        step = attention.plan(layout)
        results.append(forward(model, step, tokens, positions, [2, 3, 10]))
    right, logits = results
    assert float((logits - right).norm() / right.norm()) <= 1e-5


@qwen3
def test_a_static_decode_of_the_whole_model_is_a_planned_one(models, triton, pool):
    _, mine = models
    attention = pool(mine, triton)
    answer(mine, attention, (9,), [0, 1, 2])
    layout = BatchLayout((SliceLayout(11, 1, [0, 1, 2]),))
    planned = forward(mine, attention.plan(layout), [77], [11], [0])
    device = mine.device
    lengths = torch.tensor([12, 0], dtype=torch.int32, device=device)
    pages = torch.tensor([[0, 1, 2], [11] * 3], dtype=torch.int32, device=device)
    step = attention.plan_decode(DecodeBuffers(lengths, pages))
    for _ in range(2):  # it runs again as it is
        static = forward(mine, step, [77, 5], [11, 0], [0])
        assert torch.allclose(static, planned, rtol=1e-5, atol=1e-5)


@qwen3
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_eight_bit_pages_cost_what_they_cost_on_the_torch_path(models, triton, pool, kv_dtype):
    """The bound is measured: the torch path's error with the same pages, over the same cuts."""
    oracle, mine = models
    table, cuts = [0, 1, 2], (4, 4, 1)
    _, exact = answer(oracle, pool(oracle, TORCH), cuts, table)
    _, torchs = answer(oracle, pool(oracle, TORCH, kv_dtype), cuts, table)
    _, logits = answer(mine, pool(mine, triton, kv_dtype), cuts, table)
    usual = float((torchs[0] - exact[0]).norm())
    assert 0 < float((logits[0] - exact[0]).norm()) <= 2 * usual


@qwen3
def test_warming_up_runs_every_kind_of_tile(models, triton, pool, monkeypatch):
    _, mine = models
    attention, seen = pool(mine, triton), []
    tiles = attention._tiles
    kinds = tiles.by_kind
    monkeypatch.setattr(tiles, "by_kind", lambda count: seen.extend(kinds(count)) or kinds(count))
    monkeypatch.setattr("agentrt.engine.kernels.WARM_UP", (1, 2, 40))
    warm_up(mine, attention)
    assert [kind for kind, _ in seen] == ["decode", "short", "long"]


READS = ("item", "tolist", "__bool__", "__int__", "__index__", "__float__")


@contextmanager
def never_waiting(device):
    """Fail where the host waits for the device: on CUDA as torch sees it, else where it reads."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return

    def refuse(*args):
        raise AssertionError("A number was read from a tensor.")

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, refuse)
        yield


@qwen3
def test_nothing_waits_for_the_device_in_a_step(models, triton, pool):
    _, mine = models
    attention, device = pool(mine, triton), mine.device
    layout = BatchLayout((SliceLayout(0, 1, [0]), SliceLayout(0, 3, [1])))
    ids, rows = torch.tensor([4, 5, 6, 7], device=device), torch.tensor([0, 3], device=device)
    places = torch.tensor([0, 0, 1, 2], device=device)
    lengths, pages = (torch.ones(shape, dtype=torch.int32, device=device) for shape in (4, (4, 1)))
    static = attention.plan_decode(DecodeBuffers(lengths, pages))
    waits = [never_waiting(device)]
    if device.type == "cuda":
        waits.insert(0, nullcontext())  # compiling may wait, running may not
    with never_waiting(device), pytest.raises((AssertionError, RuntimeError)):
        bool(rows[0])  # the guard itself works
    for waiting in waits:
        with waiting:
            mine.forward(ids, places, attention.plan(layout), rows)
            mine.forward(ids, places * 0, static, rows)


def test_a_model_runs_with_its_own_gpu_as_the_current_one(monkeypatch):
    """Triton launches there, whatever device the thread would be on."""
    current = ["cuda:0"]

    @contextmanager
    def use(device):
        current.append(str(device))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", use)

    class Placed:
        device = torch.device("cuda:1")

        @on_its_device
        def forward(self, number, *, more):
            return number + more, current[-1]

    assert Placed().forward(1, more=2) == (3, "cuda:1")
    assert current == ["cuda:0"]
