"""Models that transformers computes, on our pages: their output equals transformers' own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from agentrt.engine.attention import BatchLayout, SliceLayout
from agentrt.engine.kernels import choose_kernels
from agentrt.engine.model.hf_check import check_computation
from agentrt.engine.model.load import open_source
from agentrt.errors import ModelError
from tests.engine.hf_models import ARCHITECTURES, their_logits, write_config, write_model
from tests.engine.test_equivalence import GREEDY, Ask, Driver, Serving
from tests.engine.test_model_logits import Pages, prompt

TOLERANCE = 2e-5
"""As a part of the largest logit; fp32."""


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(kind: str) -> Path:
        return write_model(tmp_path_factory.mktemp(kind), kind)

    return make


def load(directory: Path, **options: Any) -> Any:
    options = {"dtype": torch.float32, "implementation": "transformers"} | options
    return open_source(directory, **options).load("cpu")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("kind", ARCHITECTURES)
class TestAgainstTransformers:
    def test_whole_and_chunked_prompts(self, models: Callable[[str], Path], kind: str) -> None:
        tokens = prompt(1, 120)
        theirs = their_logits(models(kind), tokens)
        pages = Pages(load(models(kind)))
        (whole,) = pages.run([(tokens, 0, 120, pages.table(120))])
        assert_close(whole, theirs)
        table = pages.table(120)
        cuts = [0, 1, 2, 17, 32, 75, 76, 119, 120]
        parts = [pages.run([(tokens, a, b, table)])[0] for a, b in itertools.pairwise(cuts)]
        assert_close(torch.cat(parts), theirs)

    def test_batches_of_chunks_and_decodes(self, models: Callable[[str], Path], kind: str) -> None:
        pages = Pages(load(models(kind)), seed=3)
        prompts = [prompt(10 + i, length) for i, length in enumerate((70, 23, 16))]
        tables = [pages.table(len(tokens)) for tokens in prompts]
        done, got = [0] * 3, [[], [], []]
        rng = random.Random(7)
        while live := [i for i in range(3) if done[i] < len(prompts[i])]:
            ends = {i: min(len(prompts[i]), done[i] + rng.choice([1, 1, 7, 33])) for i in live}
            outputs = pages.run([(prompts[i], done[i], ends[i], tables[i]) for i in live])
            for i, output in zip(live, outputs, strict=True):
                got[i].append(output)
                done[i] = ends[i]
        for tokens, parts in zip(prompts, got, strict=True):
            assert_close(torch.cat(parts), their_logits(models(kind), tokens))

    def test_logits_of_no_rows_and_of_some(self, models: Callable[[str], Path], kind: str) -> None:
        model, tokens = load(models(kind)), prompt(3, 9)
        pages = Pages(model)
        (every,) = pages.run([(tokens, 0, 9, pages.table(9))])
        for rows in ([], [8], [2, 5]):
            step = pages.attention.plan(BatchLayout((SliceLayout(0, 9, pages.table(9)),)))
            some = model.forward(
                torch.tensor(tokens), torch.arange(9), step, torch.tensor(rows, dtype=torch.int64)
            )
            assert some.shape == (len(rows), 512)
            assert torch.allclose(some, every[rows], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3_text", "gpt_neox", "deepseek_v3"])
def test_turns_with_prefix_hits_and_preemption_give_transformers_tokens(
    models: Callable[[str], Path], kind: str
) -> None:
    """Greedy turns: two that share a prefix, and two in a pool that is too small for both."""
    model, first = load(models(kind)), prompt(1, 40)
    model.kernels = choose_kernels("auto", "cpu")  # ours where they can be built, else torch's
    shared = [
        Ask(tuple(first), 9, GREEDY),
        Ask(tuple(prompt(2, 33)), 9, GREEDY),
        Ask((*first, 7, 7, 7), 9, GREEDY, at=14),
    ]
    crowded = [Ask(tuple(prompt(seed, 40)), 24, GREEDY) for seed in (5, 6)]
    for asks, serving in (
        (shared, Serving(pages=60, budget=24)),
        (crowded, Serving(pages=24, budget=100)),
    ):
        served = Driver(model, serving).run(asks)
        assert served.preemptions >= 1 or served.stats["turn2"].cached_tokens == 40
        for turn_id, ask in served.asks.items():
            tokens = list(ask.prompt) + served.tokens[turn_id]
            best = their_logits(models(kind), tokens).argmax(dim=-1)
            assert served.tokens[turn_id] == best[len(ask.prompt) - 1 : -1].tolist()


def test_bfloat16_is_as_close_as_transformers_in_bfloat16(models: Callable[[str], Path]) -> None:
    tokens = prompt(4, 80)
    for kind in ("llama", "granite"):  # granite scales its queries, which rounds once more
        exact = their_logits(models(kind), tokens)
        half = transformers.AutoModelForCausalLM.from_pretrained(models(kind), dtype=torch.bfloat16)
        with torch.inference_mode():
            theirs = half(torch.tensor([tokens])).logits[0].float()
        pages = Pages(load(models(kind), dtype=torch.bfloat16))
        (ours,) = pages.run([(tokens, 0, 80, pages.table(80))])
        assert (ours - exact).square().mean() <= 3 * (theirs - exact).square().mean()


class TestChoosing:
    def test_our_decoder_where_it_knows_the_architecture(
        self, models: Callable[[str], Path]
    ) -> None:
        kinds = {
            kind: type(open_source(models(kind), dtype=torch.float32).load("cpu")).__name__
            for kind in ("llama", "qwen3", "qwen3_moe", "gpt_neox")
        }
        assert kinds == {
            "llama": "Decoder",
            "qwen3": "Decoder",
            "qwen3_moe": "HfDecoder",
            "gpt_neox": "HfDecoder",
        }

    def test_a_variant_that_our_decoder_refuses(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(tmp_path, "llama", hidden_act="gelu")
        model = load(tmp_path, implementation="auto")
        assert type(model).__name__ == "HfDecoder"
        assert "hidden_act 'gelu' is not supported" in caplog.text
        tokens = prompt(1, 30)
        pages = Pages(model)
        (ours,) = pages.run([(tokens, 0, 30, pages.table(30))])
        assert_close(ours, their_logits(tmp_path, tokens))

    def test_both_compute_the_same(self, models: Callable[[str], Path]) -> None:
        tokens = prompt(1, 60)
        for kind in ("llama", "qwen3", "qwen2", "mistral"):
            logits = []
            for implementation in ("native", "transformers"):
                pages = Pages(load(models(kind), implementation=implementation))
                logits += pages.run([(tokens, 0, 60, pages.table(60))])
            assert_close(*logits)

    def test_our_decoder_can_be_insisted_on(self, models: Callable[[str], Path]) -> None:
        with pytest.raises(ModelError, match=r"config\.json: architecture 'gpt_neox'"):
            open_source(models("gpt_neox"), implementation="native")

    def test_an_unknown_implementation(self, models: Callable[[str], Path]) -> None:
        with pytest.raises(ValueError, match="no model implementation 'jax'"):
            open_source(models("llama"), implementation="jax")

    def test_transformers_is_missing(
        self, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        with pytest.raises(ModelError, match=r"pip install 'agentrt\[hf\]'"):
            open_source(models("gpt_neox"))
        assert type(open_source(models("qwen3")).load("cpu")).__name__ == "Decoder"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": ({}, "caps its attention scores"),
    "gpt_oss": ({"num_local_experts": 4}, "attention sinks"),
    "mamba": ({}, "recurrent state"),
    "qwen3_next": ({}, "recurrent state"),
    "llama4_text": ({}, "chunked_attention"),
    "t5": ({}, "encoder-decoder"),
    "bert": ({}, "later tokens"),
    "bloom": ({}, "0 times for 2 layers"),
    "stablelm": ({}, "does not hand its keyword arguments on"),
    "vit": ({}, "no causal language model"),
    "minimax": ({}, "linear_attention"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_pages_cannot_serve_is_refused_without_weights(tmp_path: Path, kind: str) -> None:
    """There are no weights in the directory at all."""
    changes, words = REFUSED[kind]
    write_config(tmp_path, kind, **changes)
    with pytest.raises(ModelError, match=words) as caught:
        open_source(tmp_path)
    assert str(tmp_path / "config.json") in caught.value.message
    assert caught.value.remedy


def test_other_refusals_of_a_config(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, words in (
        ('{"model_type": "superduper"}', "'superduper' is not known to transformers"),
        ('{"model_type": "gpt_neox", "quantization_config": {"bits": 4}}', "quantized weights"),
        ('{"model_type": "gpt_neox", "hidden_size": "wide"}', "transformers cannot read it"),
        ("{}", "architecture None is not known"),
    ):
        file.write_text(text)
        with pytest.raises(ModelError, match=words) as caught:
            open_source(tmp_path)
        assert str(file) in caught.value.message


def test_contexts_end_where_the_rotation_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }
    extra = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    write_model(tmp_path, "phi3", **extra)
    model = load(tmp_path)
    assert model.config.max_positions == 64
    assert "contexts end there, not at 512" in caplog.text
    pages, tokens = Pages(model), prompt(1, 64)
    parts = [
        pages.run([(tokens, a, b, table)])[0]
        for table in [pages.table(64)]
        for a, b in ((0, 20), (20, 64))
    ]
    assert_close(torch.cat(parts), their_logits(tmp_path, tokens))


class TestSelfCheck:
    def test_passes_for_both_decoders(self, models: Callable[[str], Path]) -> None:
        check_computation(load(models("llama")), models("llama"))
        check_computation(load(models("llama"), implementation="native"), models("llama"))

    def test_finds_a_model_that_counts_positions_itself(
        self, models: Callable[[str], Path]
    ) -> None:
        model = load(models("llama"))

        class Counting:
            config, dtype, device = model.config, model.dtype, model.device

            def forward(self, tokens, positions, attention, rows):
                return model.forward(tokens, torch.arange(len(tokens)), attention, rows)

        with pytest.raises(ModelError, match="gives other logits in parts than alone"):
            check_computation(Counting(), models("llama"))

    def test_finds_a_model_that_mixes_the_batch(self, models: Callable[[str], Path]) -> None:
        model = load(models("llama"))

        class Mixing:
            config, dtype, device = model.config, model.dtype, model.device

            def forward(self, tokens, positions, attention, rows):
                logits = model.forward(tokens, positions, attention, rows)
                return logits + 0.1 * tokens.float().mean()

        with pytest.raises(ModelError, match="than alone"):
            check_computation(Mixing(), models("llama"))

    def test_finds_weights_that_are_broken(self, models: Callable[[str], Path]) -> None:
        model = load(models("llama"))
        with torch.no_grad():
            next(iter(model._model.parameters())).fill_(float("nan"))
        with pytest.raises(ModelError, match="not finite"):
            check_computation(model, models("llama"))
