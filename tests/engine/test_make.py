"""Made checkpoints: the same bytes every time, whole or absent, and loadable by others."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from agentrt.engine.attention import BatchLayout, SliceLayout, TorchPagedAttention
from agentrt.engine.model import ModelConfig, load_model
from agentrt.engine.model import make as make_module
from agentrt.engine.model import seeded as seeded_module
from agentrt.engine.model.make import (
    NONSENSE,
    default_model_dir,
    ensure_default_model,
    make_model,
)
from agentrt.engine.model.recipe import ARCHS, SIZES, config_json
from agentrt.engine.model.seeded import seeded_tensor
from agentrt.engine.model.vocabulary import SPECIAL
from agentrt.engine.tokens import Tokenizer
from agentrt.errors import InvalidRequest, ModelError

ROOT = Path(__file__).parents[2]


def digests(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()
    }


def in_new_process(directory: Path, **environment: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from agentrt.engine.model.make import make_model; "
        "print(make_model(sys.argv[1], size='tiny', dtype='float32').reused)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return out.strip()


def test_the_same_arguments_give_the_same_bytes(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    settings = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    assert finish(in_new_process(made, **settings)) == "False"
    assert digests(made) == digests(tiny_model_dir)


def test_bytes_do_not_drift_between_machines_and_versions() -> None:
    """If this fails on purpose, raise ``RECIPE``: directories of the old recipe exist."""
    values = seeded_tensor("model.norm.weight", (3, 5), 1.0, seed=7)
    digest = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "80bf97b7ae1b1d14110dcd7526d71ae4bec5bd48171aec8db65c492a2bc3bc93"
    assert values.shape == (3, 5)


def test_seeds_and_sizes_differ_in_weights_only(tiny_model_dir: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "other", size="tiny", seed=1, dtype="float32")
    first, second = digests(tiny_model_dir), digests(tmp_path / "other")
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"model.safetensors", "README.md", "agentrt-model.json"}


def test_large_tensors_come_block_by_block_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seeded_tensor("a", (100, 7), 2.0, seed=3)
    monkeypatch.setattr(seeded_module, "_BLOCK", 64)
    assert torch.equal(seeded_tensor("a", (100, 7), 2.0, seed=3), whole)
    assert not torch.equal(seeded_tensor("b", (100, 7), 2.0, seed=3), whole)
    sample = seeded_tensor("a", (200, 200), 2.0, seed=3)
    assert abs(sample.mean()) < 0.05
    assert abs(sample.std() - 2.0) < 0.05


@pytest.mark.parametrize("arch", list(ARCHS))
def test_transformers_loads_what_we_make(tiny_models: Callable[..., Path], arch: str) -> None:
    directory = tiny_models(arch)
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == ARCHS[arch]
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert GenerationConfig.from_pretrained(directory).eos_token_id == 2
    # AutoTokenizer takes a class of its own for Qwen2, which replaces the file's rule for words.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    assert len(tokenizer) == SIZES["tiny"].words
    assert tokenizer.eos_token == "<|im_end|>"
    ours = Tokenizer.from_directory(directory)
    for text in ("def f(x):\n    return x\n", "é 🦜 <|im_start|>x", "a  b\t12345"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


@pytest.mark.parametrize("size", ["15m", "135m", "600m"])
@pytest.mark.parametrize("arch", list(ARCHS))
def test_sizes_are_what_their_names_say(arch: str, size: str, tmp_path: Path) -> None:
    raw = config_json(arch, size, dtype="bfloat16", eos=2, pad=0)
    config = ModelConfig.from_mapping(raw, tmp_path / "config.json")
    named = int(size.removesuffix("m")) * 1_000_000
    untied = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
    assert 0.9 * named <= config.parameters - untied <= 1.1 * named
    (tmp_path / "config.json").write_text(json.dumps(raw))
    other = AutoConfig.from_pretrained(tmp_path)
    assert other.model_type == arch
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(other)
    assert sum(p.numel() for p in model.parameters()) == config.parameters


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeded_module, "_SHARD_BYTES", 100_000)
    make_model(tmp_path / "sharded", size="tiny", dtype="float32")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert sorted(p.name for p in (tmp_path / "sharded").glob("*.safetensors")) == files
    config = ModelConfig.from_directory(tmp_path / "sharded")
    assert index["metadata"]["total_size"] == config.parameters * 4
    monkeypatch.undo()
    make_model(tmp_path / "single", size="tiny", dtype="float32")
    sharded, single = load_model(tmp_path / "sharded"), load_model(tmp_path / "single")
    assert torch.equal(sharded._embed.weight, single._embed.weight)
    assert torch.equal(sharded._layers[1].down.weight, single._layers[1].down.weight)


def test_greedy_output_wanders(tiny_models: Callable[..., Path]) -> None:
    """No model is stuck on a token, produces special tokens, or ignores what came before."""
    for arch in ARCHS:
        model = load_model(tiny_models(arch))
        output = greedy(model, [3, 4, 5, 6], 120)
        assert len(set(output)) > 40
        assert not set(output) & set(range(len(SPECIAL)))
        assert greedy(model, [7, 4, 5, 6], 120) != output


def greedy(model: object, prompt: list[int], count: int) -> list[int]:
    attention = TorchPagedAttention(model.config, 16, 16, model.dtype)
    tokens, done = list(prompt), 0
    while len(tokens) < len(prompt) + count:
        layout = BatchLayout((SliceLayout(done, len(tokens) - done, list(range(16))),))
        positions = torch.arange(done, len(tokens))
        last = torch.tensor([len(positions) - 1])
        logits = model.forward(torch.tensor(tokens[done:]), positions, attention.plan(layout), last)
        done = len(tokens)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_it_says_plainly_that_it_speaks_nonsense(tiny_model_dir: Path) -> None:
    assert NONSENSE in (tiny_model_dir / "README.md").read_text()


def test_files_can_be_read_by_others(tiny_model_dir: Path) -> None:
    modes = {file.stat().st_mode & 0o777 for file in tiny_model_dir.iterdir()}
    assert modes == {0o666 & ~umask()}


def umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def test_the_same_model_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    assert not make_model(target, size="tiny").reused
    before = {file.name: file.stat().st_mtime_ns for file in target.iterdir()}
    assert make_model(target, size="tiny").reused
    assert {file.name: file.stat().st_mtime_ns for file in target.iterdir()} == before


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    assert not make_model(target, size="tiny").reused
    assert load_model(target).dtype == torch.bfloat16


@pytest.mark.parametrize("other", [{"seed": 1}, {"arch": "llama"}, {"dtype": "float32"}])
def test_another_model_is_not_overwritten(tmp_path: Path, other: dict[str, object]) -> None:
    target = tmp_path / "model"
    make_model(target, size="tiny")
    before = digests(target)
    with pytest.raises(ModelError, match=r"not empty.*nothing was changed"):
        make_model(target, size="tiny", **other)
    assert digests(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "thesis.tex").write_text("important")
    with pytest.raises(ModelError, match="not empty"):
        make_model(target, size="tiny")
    assert [file.name for file in target.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError):
        make_model(tmp_path / "file", size="tiny")


def test_a_damaged_model_is_named_as_such(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make_model(target, size="tiny")
    (target / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"changed or lost.*rm -r"):
        make_model(target, size="tiny")


@pytest.mark.parametrize(
    "wrong", [{"arch": "gpt2"}, {"size": "7b"}, {"dtype": "float16"}, {"dtype": "int8"}]
)
def test_unknown_choices_name_the_known_ones(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="Choose one of"):
        make_model(tmp_path / "model", **{"size": "tiny", **wrong})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        make_model(tmp_path / "file" / "model", size="tiny")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise stop

    with pytest.raises(stop):
        make_model(tmp_path / "model", size="tiny", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".model.0123.partial"
    left.mkdir()
    (left / "config.json").write_text("{}")
    used = tmp_path / ".model.4567.partial"
    used.mkdir()
    handle = make_module._lock(used)
    try:
        make_model(tmp_path / "model", size="tiny")
    finally:
        os.close(handle)
    assert sorted(file.name for file in tmp_path.iterdir()) == [used.name, "model"]


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_model(tmp_path / "model", size="tiny", progress=lambda *step: seen.append(step))
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[0]
    assert len(set(total)) == 1


def test_several_processes_may_make_the_same_model(tmp_path: Path) -> None:
    target = tmp_path / "model"
    results = [finish(p) for p in [in_new_process(target) for _ in range(3)]]
    assert results.count("False") == 1
    assert list(tmp_path.iterdir()) == [target]
    assert load_model(target).config.arch == "qwen3"


def test_where_the_default_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("AGENTRT_CACHE", raising=False)
    name = default_model_dir().name
    assert default_model_dir() == tmp_path / "home/.cache/agentrt/models" / name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_model_dir() == tmp_path / "xdg/agentrt/models" / name
    monkeypatch.setenv("AGENTRT_CACHE", str(tmp_path / "own"))
    assert default_model_dir() == tmp_path / "own/models" / name
    assert default_model_dir(tmp_path / "given") == tmp_path / "given/models" / name


def test_the_default_model_is_made_on_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTRT_CACHE", str(tmp_path))
    directory = ensure_default_model()
    assert directory == default_model_dir()
    assert ModelConfig.from_directory(directory).arch == "qwen3"
    calls: list[int] = []
    assert ensure_default_model(lambda done, _: calls.append(done)) == directory
    assert not calls
