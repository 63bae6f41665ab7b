"""Models of every kind through the runtime: who computes them, how loading is told, faults."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.engine.model.make import make_model
from agentrt.errors import EngineFault, ModelError
from tests.engine.hf_models import their_logits, write_model

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
PROMPT = list(range(5, 25))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RuntimeConfig:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return RuntimeConfig(
        model=str(directory), pool_tokens=512, page_size=4, sandbox=None, threads=1
    )


async def answer(runtime: Runtime, name: str) -> list[int]:
    async with runtime.program(name) as program:
        return list((await program.complete(PROMPT, GREEDY)).tokens)


async def test_a_model_of_transformers_is_served(config: RuntimeConfig, tmp_path: Path) -> None:
    model = write_model(tmp_path / "moe", "qwen3_moe")
    for file in Path(config.model).glob("tokenizer*"):
        shutil.copy(file, model)
    said: list[tuple[int, int]] = []
    async with Runtime.open(
        dataclasses.replace(config, model=str(model)), on_load=lambda *now: said.append(now)
    ) as runtime:
        tokens = await answer(runtime, "p")
        assert (runtime.model_name, runtime.max_context) == ("moe", 512)
    best = their_logits(model, PROMPT + tokens).argmax(dim=-1).tolist()
    assert tokens == best[len(PROMPT) - 1 : -1]
    assert said[-1][0] == said[-1][1] > 0


async def test_transformers_can_be_asked_for(config: RuntimeConfig) -> None:
    answers = []
    for implementation in ("native", "transformers"):
        chosen = dataclasses.replace(config, model_impl=implementation)
        async with Runtime.open(chosen) as runtime:
            answers.append(await answer(runtime, "p"))
    assert answers[0] == answers[1]


async def test_a_fault_is_raised_typed_and_the_engine_starts_anew(config: RuntimeConfig) -> None:
    async with Runtime.open(config) as runtime:
        wanted = await answer(runtime, "before")
        backend = runtime.models[0].engine._loop._backend
        pages = backend._attention
        faults = [RuntimeError("the kernel is bad")]
        compute = backend._model.forward

        def forward(*arguments):
            if faults:
                raise faults.pop()
            return compute(*arguments)

        backend._model.forward = forward
        async with runtime.program("p") as program:
            with pytest.raises(EngineFault, match="the kernel is bad"):
                await program.complete(PROMPT, GREEDY)
            again = await program.complete(PROMPT, GREEDY)
        assert list(again.tokens) == wanted
        assert runtime.statistics().restarts == 1
        assert backend._attention is not pages


async def test_fp8_weights_take_less_and_are_made_while_loading(config: RuntimeConfig) -> None:
    weights = []
    for quant in (None, "fp8"):
        async with Runtime.open(dataclasses.replace(config, quant=quant)) as runtime:
            assert len(await answer(runtime, "p")) == 6
            weights.append(runtime.memory.models[0].weights)
            assert runtime.statistics().scheduler.pages_total == runtime.memory.models[0].pages
    assert weights[1] < weights[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kv_dtype": "fp4"}, "no kv dtype 'fp4'"),
        ({"quant": "fp4"}, "no quantization 'fp4'. Use int8 or fp8"),
        ({"quant": "fp8", "model_impl": "transformers"}, "fp8 weights are for models that our own"),
        ({"pool_tokens": 10**12}, "the weights take"),
        ({"page_size": 0}, "page_size is 0"),
    ],
)
async def test_settings_are_refused_before_weights_are_read(
    config: RuntimeConfig, change: dict[str, object], said: str
) -> None:
    read: list[object] = []
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        async with Runtime.open(
            dataclasses.replace(config, **change), on_load=lambda *now: read.append(now)
        ):
            pass
    assert not read


async def test_a_bad_name_and_a_bad_implementation(config: RuntimeConfig) -> None:
    for change in ({"model": "/nonexistent"}, {"model_impl": "native", "model": "/nonexistent"}):
        with pytest.raises(ModelError, match="does not exist"):
            async with Runtime.open(dataclasses.replace(config, **change)):
                pass
    with pytest.raises(ValueError, match="no model implementation"):
        async with Runtime.open(dataclasses.replace(config, model_impl="jax")):
            pass
