"""The parts of steps on a device: on the CPU, and the same on CUDA where there is one."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.attention.base import BatchLayout, DecodeBuffers, SliceLayout
from agentrt.engine.attention.static import StaticDecode
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.draws import drawn_tokens, uniform, uniforms
from agentrt.engine.gpu.buckets import batch_buckets, bucket_for
from agentrt.engine.gpu.capture import CudaCapturer, Replayed
from agentrt.engine.gpu.choose import choose_steps
from agentrt.engine.gpu.metadata import Metadata
from agentrt.engine.gpu.runner import DeviceBackend
from agentrt.engine.gpu.sampling import draw, take_best
from agentrt.engine.gpu.token_pool import UNUSABLE, TokenPool
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.engine.sampling import TurnSampling, draw_tokens
from agentrt.errors import ConfigError, InternalError
from agentrt.scheduling.plan import SeqSlice, StepPlan

PAGE, PAGES, VOCAB = 4, 40, 512
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.requires_cuda)]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="module", params=DEVICES)
def model(request, tiny_models):
    return load_model(tiny_models("qwen3"), device=request.param)


class TestBuckets:
    def test_the_sizes(self):
        assert batch_buckets(256) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
        assert batch_buckets(64) == (1, 2, 4, 8, 16, 24, 32, 48, 64)
        assert batch_buckets(10) == (1, 2, 4, 8, 10)
        assert batch_buckets(1) == (1,)

    @given(st.integers(1, 600), st.integers(1, 700))
    def test_the_smallest_with_room_is_taken(self, most, rows):
        buckets = batch_buckets(most)
        assert list(buckets) == sorted(set(buckets))
        found = bucket_for(buckets, rows)
        if rows > most:
            assert found is None
        else:
            assert found == min(size for size in buckets if size >= rows)
            assert found <= max(2 * rows, rows + 31)


class TestMetadata:
    @pytest.mark.parametrize("whole", [0, 1 << 14])
    def test_what_is_written_is_read_at_the_same_places(self, device, whole):
        metadata = Metadata(8, 5, device, whole=whole)
        for rows in (4, 2, 8, 1):
            on_device = metadata.rows(rows)
            before = on_device.buffers.pages.data_ptr()
            host = metadata.write(rows)
            assert not host.token.any()
            assert not host.number.any()
            host.number[:] = np.arange(rows) / 7
            host.share[:], host.temperature[:], host.min_p[:] = 0.25, 0.7, 0.1
            for name in ("token", "position", "length", "slot", "top_k", "forced"):
                getattr(host, name)[:] = np.arange(rows) - 1
            used = metadata.columns(rows, 3)
            assert used == (5 if whole else 3)
            host.tables(used)[:, :3] = np.arange(rows)[:, None] * 10 + np.arange(3)
            metadata.send(host, used)
            on_device.spread()
            assert on_device.number.tolist() == (np.arange(rows) / 7).tolist()
            assert on_device.share.tolist() == [0.25] * rows
            assert on_device.min_p.tolist() == pytest.approx([0.1] * rows)
            assert on_device.forced.tolist() == (np.arange(rows) - 1).tolist()
            assert on_device.buffers.lengths.tolist() == (np.arange(rows) - 1).tolist()
            wanted = [[row * 10 + i for i in range(3)] for row in range(rows)]
            assert on_device.buffers.pages[:, :3].tolist() == wanted
            assert on_device.buffers.pages.data_ptr() == before
            assert on_device.buffers.lengths.dtype == torch.int32

    def test_the_next_step_is_written_elsewhere(self, device):
        metadata = Metadata(2, 1, device)
        first = metadata.write(1)
        metadata.send(first, 1)
        second = metadata.write(1)
        assert first.words.ctypes.data != second.words.ctypes.data
        metadata.send(second, 1)
        third = metadata.write(1)
        assert third.words.ctypes.data == first.words.ctypes.data
        with pytest.raises(InternalError, match="not the ones being written"):
            metadata.send(second, 1)


class TestTokenPool:
    def test_a_step_reads_what_the_one_before_has_written(self, device):
        pool = TokenPool(3, device)
        good = torch.ones(3, dtype=torch.bool, device=device)
        places = torch.tensor([pool.place(0, i) for i in range(3)], device=device)
        pool.write(places, torch.tensor([7, 8, 9], device=device), good)
        pool.bring(0, 3)
        asked = torch.tensor([5, -1 - pool.place(0, 2), -1 - pool.place(0, 0)], device=device)
        assert pool.read(asked.int()).tolist() == [5, 9, 7]
        others = torch.tensor([pool.place(1, 0), pool.place(1, 1), pool.nowhere], device=device)
        bad = torch.tensor([True, False, True], device=device)
        pool.write(others, torch.tensor([1, 2, 3], device=device), bad)
        pool.bring(1, 2)
        assert pool.wait(0, 3) == [7, 8, 9]
        assert pool.wait(1, 2) == [1, UNUSABLE]
        # What was unusable can be fed on: it is a token, if of no meaning.
        assert pool.read(torch.tensor([-1 - pool.place(1, 1)], device=device)).tolist() == [0]


def random_rows(rng, count):
    return [
        SamplingParams(
            temperature=float(rng.choice([0.0, 0.4, 1.0, 2.0])),
            top_k=int(rng.choice([0, 1, 7, 400, 5000])),
            top_p=float(rng.choice([0.1, 0.8, 1.0, 1.0])),
            min_p=float(rng.choice([0.0, 0.0, 0.2])),
            seed=int(rng.integers(2**31)),
        )
        for _ in range(count)
    ]


def filled(metadata, params, positions, forced, pool):
    """Send rows of sampling parameters, as the runner does."""
    host = metadata.write(len(params))
    seeds = np.array([p.seed for p in params], np.uint64)
    host.number[:] = uniforms(seeds, np.array(positions))
    for row, p in enumerate(params):
        host.temperature[row], host.top_k[row] = p.temperature, p.top_k
        host.share[row], host.min_p[row] = 1 - p.top_p, p.min_p
        host.forced[row] = 0 if forced[row] is None else forced[row] + 1
        host.slot[row] = pool.place(0, row)
    metadata.send(host, metadata.columns(len(params), 1))
    return metadata.rows(len(params))


class TestSampling:
    """The device's draws are the host's."""

    @pytest.mark.parametrize("vocab", [37, 1500, 5000])
    def test_the_same_tokens_for_the_same_logits_seeds_and_positions(self, device, vocab):
        rng = np.random.default_rng(vocab)
        metadata, pool = Metadata(40, 1, device), TokenPool(40, device)
        for count in (1, 3, 40):
            logits = torch.from_numpy(rng.normal(0, 2, (count, vocab)).astype(np.float32))
            logits[-1, 5] = torch.nan
            logits = logits.to(device)
            before = logits.clone()
            params = random_rows(rng, count)
            positions = rng.integers(1, 5000, count).tolist()
            forced = [3 if rng.random() < 0.1 else None for _ in range(count)]
            turns = [TurnSampling.start(p, p.seed, torch.tensor([1]), vocab) for p in params]
            wanted = [d.token for d in draw_tokens(logits, turns, positions, forced)]
            rows = filled(metadata, params, positions, forced, pool)
            with torch.inference_mode():
                draw(logits, rows, pool, cut=True)
            pool.bring(0, count)
            got = [None if t == UNUSABLE else t for t in pool.wait(0, count)]
            assert got == wanted
            assert wanted[-1] is None
            assert torch.equal(logits.nan_to_num(), before.nan_to_num())

    def test_without_cuts_and_the_best(self, device):
        rng = np.random.default_rng(1)
        metadata, pool = Metadata(9, 1, device), TokenPool(9, device)
        logits = torch.from_numpy(rng.normal(0, 2, (9, 300)).astype(np.float32)).to(device)
        params = [SamplingParams(temperature=i % 3 / 2, seed=i) for i in range(9)]
        turns = [TurnSampling.start(p, p.seed, torch.tensor([1]), 300) for p in params]
        wanted = [d.token for d in draw_tokens(logits, turns, [8] * 9, [None] * 9)]
        rows = filled(metadata, params, [8] * 9, [None] * 9, pool)
        draw(logits, rows, pool, cut=False)
        pool.bring(0, 9)
        assert pool.wait(0, 9) == wanted
        take_best(logits, rows, pool)
        pool.bring(0, 9)
        assert pool.wait(0, 9) == logits.argmax(1).tolist()

    @pytest.mark.parametrize("vocab", [300, 2048, 4999, 6000])
    def test_blocks_give_what_one_sum_over_all_tokens_gives(self, device, vocab):
        rng = np.random.default_rng(vocab)
        logits = torch.from_numpy(rng.normal(0, 4, (200, vocab)).astype(np.float32)).to(device)
        numbers = torch.from_numpy(rng.random(200)).to(device)
        numbers[:2] = torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64)
        ones = torch.ones(200, 1, device=device)
        weights = (logits - logits.amax(1, keepdim=True)).exp().double().cumsum(1)
        wanted = torch.searchsorted(weights, numbers[:, None] * weights[:, -1:], right=True)
        got = drawn_tokens(logits.clone(), numbers, ones, None)
        assert got.tolist() == wanted[:, 0].tolist()

    def test_nothing_without_weight_is_ever_drawn(self, device):
        logits = torch.full((3, 3000), -torch.inf, device=device)
        logits[:, 1234] = 1.0
        logits[1, 2999], logits[2, 0] = 1.0, 1.0
        numbers = torch.full((3,), 1 - 2.0**-52, dtype=torch.float64, device=device)
        ones = torch.ones(3, 1, device=device)
        assert drawn_tokens(logits, numbers, ones, None).tolist() == [1234, 2999, 1234]

    def test_numbers_in_bulk_are_those_one_by_one(self):
        seeds = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
        positions = np.array([0, 5, 2**31, 7], np.int64)
        one_by_one = [uniform(int(s), int(p)) for s, p in zip(seeds, positions, strict=True)]
        assert uniforms(seeds, positions).tolist() == one_by_one


class TestStaticAttention:
    @pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
    @pytest.mark.parametrize("arch", ["qwen3", "mistral"])
    def test_it_is_what_a_planned_step_gives(self, tiny_models, device, arch, kv_dtype):
        config = load_model(tiny_models(arch)).config
        torch.manual_seed(1)
        attention = TorchPagedAttention(config, PAGES, PAGE, torch.float32, device, kv_dtype)
        starts = [0, 3, 17, 38]
        tables = [[7 * row + i for i in range(10)] for row in range(4)]
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)

        def random(count):
            return [torch.randn(count, n, config.head_dim, device=device) for n in heads]

        for start, table in zip(starts, tables, strict=True):
            if start:
                layout = BatchLayout((SliceLayout(0, start, table),))
                for layer in range(config.num_layers):
                    attention.plan(layout).attend(layer, *random(start))
        q, k, v = random(6)
        layout = BatchLayout(
            tuple(SliceLayout(s, 1, t) for s, t in zip(starts, tables, strict=True))
        )
        lengths = torch.tensor([s + 1 for s in starts] + [0, 0], dtype=torch.int32, device=device)
        pages = torch.full((6, 12), 10_000, dtype=torch.int32, device=device)  # never to be read
        for row, (start, table) in enumerate(zip(starts, tables, strict=True)):
            count = start // PAGE + 1
            pages[row, :count] = torch.tensor(table[:count], dtype=torch.int32)
        static = attention.plan_decode(DecodeBuffers(lengths, pages))
        for layer in range(config.num_layers):
            kept = [part.clone() for part in attention.page_tensors]
            wanted = attention.plan(layout).attend(layer, q[:4], k[:4], v[:4])
            written = [part.clone() for part in attention.page_tensors]
            for part, old in zip(attention.page_tensors, kept, strict=True):
                part.copy_(old)
            got = static.attend(layer, q, k, v)
            torch.testing.assert_close(got[:4], wanted, rtol=1e-5, atol=1e-5)
            for part, new in zip(attention.page_tensors, written, strict=True):
                assert torch.equal(part.view(torch.uint8), new.view(torch.uint8))


def make_backend(model, kind=DeviceBackend, most=4, **more):
    def new_attention():
        attention = TorchPagedAttention(model.config, PAGES, PAGE, model.dtype, model.device)
        attention.kv.fill_(float("nan"))
        return attention

    if kind is DeviceBackend:
        cuda = model.device.type == "cuda"
        more["most"] = most
        more["capturer"] = lambda: CudaCapturer(model.device) if cuda else Replayed()
    return kind(model, new_attention(), rebuild=new_attention, **more)


def pages_of(row):
    return list(range(10 * row, 10 * row + 10))


def prefill(backend, turns):
    """Open turns, ``(prompt, sampling, forced)`` by id, and compute their prompts."""
    slices = []
    for row, (turn_id, (prompt, sampling, forced)) in enumerate(turns.items()):
        backend.open(turn_id, prompt, sampling, forced)
        slices.append(SeqSlice(turn_id, 0, len(prompt), pages_of(row), True))
    return {k: list(s.tokens) for k, s in backend.run(StepPlan(tuple(slices))).samples.items()}


def decode_plan(turns, place):
    return StepPlan(
        tuple(
            SeqSlice(turn_id, len(prompt) + place, 1, pages_of(row), True)
            for row, (turn_id, (prompt, _, _)) in enumerate(turns.items())
        )
    )


def answers(backend, turns, steps, early):
    """Decode ``steps`` times, launching each step before the last one's tokens are read or not."""
    tokens = prefill(backend, turns)
    flying = []
    for place in range(steps):
        flying.append(backend.launch(decode_plan(turns, place)))
        if early:
            assert backend.follows(flying[-1].plan)
        while len(flying) > early:
            for turn_id, sample in backend.wait(flying.pop(0)).samples.items():
                tokens[turn_id] += sample.tokens
    for handle in flying:
        for turn_id, sample in backend.wait(handle).samples.items():
            tokens[turn_id] += sample.tokens
    return tokens


TURNS = {
    "greedy": (list(range(5, 20)), GREEDY, None),
    "drawn": (list(range(30, 37)), SamplingParams(seed=3), None),
    "cut": (list(range(50, 59)), SamplingParams(top_k=40, top_p=0.9, seed=-4), None),
    "forced": (list(range(9)), SamplingParams(seed=1), list(range(100, 130))),
}


class TestBackend:
    @pytest.mark.parametrize("names", [["greedy"], ["drawn", "greedy"], list(TURNS)])
    def test_recorded_steps_say_what_others_say(self, model, names):
        turns = {name: TURNS[name] for name in names}
        wanted = answers(make_backend(model, TorchBackend), turns, 20, early=False)
        for early in (False, True):
            backend = make_backend(model)
            assert answers(backend, turns, 20, early=early) == wanted
            assert backend.graph_steps == 20

    def test_only_plain_decodes_are_recorded(self, model):
        limits = {
            "penalised": SamplingParams(frequency_penalty=0.5, seed=1),
            "logprobs": SamplingParams(temperature=0, logprobs=2),
        }
        for name, sampling in limits.items():
            backend = make_backend(model)
            turns = {"greedy": TURNS["greedy"], name: (list(range(9)), sampling, None)}
            wanted = answers(make_backend(model, TorchBackend), turns, 5, early=False)
            assert answers(backend, turns, 5, early=False) == wanted
            assert backend.graph_steps == 0
        backend = make_backend(model)
        prefill(backend, {"greedy": TURNS["greedy"]})
        drafted = SeqSlice("greedy", 15, 3, pages_of(0), True, draft=(1, 2))
        handle = backend.launch(StepPlan((drafted,)))
        assert not backend.follows(handle.plan)
        assert backend.wait(handle).samples["greedy"].tokens

    def test_a_batch_beyond_the_largest_bucket_takes_the_ordinary_way(self, model):
        backend = make_backend(model, most=1)
        turns = {name: TURNS[name] for name in ("greedy", "drawn")}
        wanted = answers(make_backend(model, TorchBackend), turns, 3, early=False)
        assert answers(backend, turns, 3, early=False) == wanted
        assert backend.graph_steps == 0

    def test_forced_output_stops_at_its_end(self, model):
        backend = make_backend(model)
        turns = {"f": (list(range(9)), GREEDY, [7, 8, 9])}
        assert prefill(backend, turns) == {"f": [7]}
        samples = [backend.run(decode_plan(turns, place)).samples["f"] for place in range(2)]
        assert [(s.tokens, s.finish) for s in samples] == [((8,), None), ((9,), "stop")]

    def test_a_slice_elsewhere_than_at_the_newest_token_is_refused(self, model):
        backend = make_backend(model)
        turns = {"greedy": TURNS["greedy"]}
        prefill(backend, turns)
        with pytest.raises(InternalError, match="has 16 tokens; its slice is at 16"):
            backend.launch(decode_plan(turns, 1))
        handle = backend.launch(decode_plan(turns, 0))
        with pytest.raises(InternalError, match="16 tokens and one on its way; its slice is at 15"):
            backend.launch(decode_plan(turns, 0))
        plan = StepPlan((SeqSlice("greedy", 16, 1, pages_of(0)[:4], True),))
        with pytest.raises(InternalError, match="needs 5 pages at 16, its table has 4"):
            backend.launch(plan)
        assert backend.wait(handle).samples["greedy"].tokens

    def test_a_step_that_needs_the_host_cannot_be_launched_early(self, model):
        backend = make_backend(model)
        turns = {"greedy": TURNS["greedy"]}
        prefill(backend, turns)
        backend.open("other", [1, 2], GREEDY)
        handle = backend.launch(decode_plan(turns, 0))
        with pytest.raises(InternalError, match="launched early that needs the host"):
            backend.launch(StepPlan((SeqSlice("other", 0, 2, pages_of(3), True),)))
        backend.wait(handle)

    def test_unusable_logits_fail_their_turn_alone(self, model):
        backend = make_backend(model)
        turns = {name: TURNS[name] for name in ("greedy", "drawn")}
        wanted = answers(make_backend(model, TorchBackend), turns, 2, early=False)
        got = prefill(backend, turns)
        backend.attention().kv[:, :, pages_of(0)[0]] = float("nan")  # what the first one reads
        first = backend.launch(decode_plan(turns, 0))
        second = backend.launch(decode_plan(turns, 1))
        for handle in (first, second):
            samples = backend.wait(handle).samples
            got["drawn"] += samples["drawn"].tokens
            assert samples["greedy"].finish == "failed"
            assert "no usable logits at position 16" in samples["greedy"].error
        assert got["drawn"] == wanted["drawn"]

    def test_after_a_restart_steps_are_recorded_over_the_new_pages(self, model):
        captured = []

        def capturer():
            captured.append(
                CudaCapturer(model.device) if model.device.type == "cuda" else Replayed()
            )
            return captured[-1]

        turns = {name: TURNS[name] for name in ("greedy", "cut")}
        wanted = answers(make_backend(model, TorchBackend), turns, 6, early=False)
        backend = make_backend(model)
        backend._capturer = capturer
        old = backend.attention()
        assert answers(backend, turns, 6, early=True) == wanted
        for turn_id in turns:
            backend.close(turn_id)
        backend.restart()
        assert len(captured) == 1
        assert backend.attention() is not old
        old.kv.fill_(float("nan"))
        assert answers(backend, turns, 6, early=True) == wanted
        assert backend.graph_steps == 12

    def test_what_a_recording_uses_lives_as_long_as_the_recording(self, model, monkeypatch):
        """A CUDA graph holds addresses, not tensors."""
        steps = []

        class Forgetful(Replayed):
            def capture(self, run):
                super().capture(run)
                return lambda: None

        class Step(StaticDecode):
            def __init__(self, *args):
                super().__init__(*args)
                steps.append(weakref.ref(self))

        monkeypatch.setattr("agentrt.engine.attention.torch_paged.StaticDecode", Step)
        backend = make_backend(model)
        backend._capturer = Forgetful
        backend.restart()
        gc.collect()
        assert len(steps) == 6
        assert [step() is None for step in steps] == [True] * 3 + [False] * 3

    def test_long_page_tables_grow_page_by_page(self, model):
        """One page table is appended to in place, as leases do, and another one is replaced."""
        backend = make_backend(model, TorchBackend), make_backend(model)
        got = []
        for each in backend:
            each.open("t", [1, 2, 3], GREEDY)
            pages = [3]
            tokens = [*each.run(StepPlan((SeqSlice("t", 0, 3, pages, True),))).samples["t"].tokens]
            for start in range(3, 30):
                if start % PAGE == 0:
                    pages.append(39 - len(pages))
                if start == 20:
                    pages = list(pages)
                step = StepPlan((SeqSlice("t", start, 1, pages, True),))
                tokens += each.run(step).samples["t"].tokens
            got.append(tokens)
        assert got[0] == got[1]


class TestChoice:
    def test_auto_is_on_for_cuda_where_nothing_is_in_the_way(self):
        assert choose_steps("auto", "auto", "cuda", None).graphs
        assert choose_steps("auto", "auto", "cuda", None).overlap
        assert not choose_steps("auto", "auto", "cpu", None).static
        assert not choose_steps("auto", "auto", "cuda", "the model waits").static

    def test_each_can_be_set_alone(self):
        mode = choose_steps("off", "on", "cpu", None)
        assert (mode.graphs, mode.overlap, mode.static) == (False, True, True)
        mode = choose_steps("on", "off", "cpu", None)
        assert (mode.graphs, mode.overlap, mode.static) == (True, False, True)

    def test_what_cannot_be_is_said(self):
        with pytest.raises(ConfigError, match="overlap is on, but the model waits"):
            choose_steps("auto", "on", "cpu", "the model waits")
        with pytest.raises(ConfigError, match="no graphs setting 'yes'"):
            choose_steps("yes", "auto", "cpu", None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([50, 700, 3001]))
def test_any_logits_give_the_same_on_host_and_device(seed, count, vocab):
    rng = np.random.default_rng(seed)
    scale = float(rng.choice([0.01, 1.0, 30.0]))
    values = rng.normal(0, scale, (count, vocab)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = rng.choice([-np.inf, 0.0, values.max()])
    logits = torch.from_numpy(values)
    params = random_rows(rng, count)
    turns = [TurnSampling.start(p, p.seed, torch.tensor([1]), vocab) for p in params]
    device = torch.device("cpu")
    metadata, pool = Metadata(count, 1, device), TokenPool(count, device)
    wanted = [d.token for d in draw_tokens(logits, turns, [9] * count, [None] * count)]
    draw(logits, filled(metadata, params, [9] * count, [None] * count, pool), pool, cut=True)
    pool.bring(0, count)
    assert [None if t == UNUSABLE else t for t in pool.wait(0, count)] == wanted
