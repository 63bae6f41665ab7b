"""The whole engine on a made checkpoint with its tokenizer: text, stops, programs side by side."""

from __future__ import annotations

import anyio
import pytest

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.kv import PageCache
from agentrt.engine.model.make import make_model
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.engine.tokens import Tokenizer
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

pytestmark = pytest.mark.anyio

PAGE = 8
TEXTS = [
    "Fix the failing test.",
    "ls -la /tmp",
    "Wörter, 名前 und 🙂",
    "a",
    "def f(x):\n    return x",
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = make_model(tmp_path_factory.mktemp("made") / "tiny", size="tiny", dtype="float32")
    return load_model(made.directory), Tokenizer.from_directory(made.directory)


def make_engine(made, pages=200, budget=64, max_seqs=8):
    model, tokenizer = made
    policy = make_policy("fixed-ttl=30")
    scheduler = Scheduler(
        PageCache(pages, PAGE, policy.retention.score),
        policy,
        SchedulerConfig(token_budget=budget, max_seqs=max_seqs),
    )
    attention = TorchPagedAttention(model.config, pages, PAGE, model.dtype)
    return Engine(scheduler, TorchBackend(model, attention), tokenizer=tokenizer, check=True)


async def answer(engine, name, prompt, **params):
    sampling = SamplingParams(**({"max_tokens": 40, "temperature": 0} | params))
    stream = await engine.submit(EngineRequest(name, name, prompt, sampling))
    with anyio.fail_after(60):
        chunks = [chunk async for chunk in stream]
    assert stream.error is None
    return [t for c in chunks for t in c.tokens], "".join(c.text for c in chunks), chunks[-1].finish


async def test_text_is_the_decoded_tokens_and_stops_cut_it(made):
    tokenizer = made[1]
    async with make_engine(made) as engine:
        prompt = tokenizer.encode(TEXTS[0])
        tokens, text, finish = await answer(engine, "a", prompt, ignore_eos=True)
        assert text == tokenizer.decode(tokens)
        assert (len(tokens), finish) == (40, "length")
        middle = text[len(text) // 2 :][:6]
        shorter, before, finish = await answer(engine, "b", prompt, ignore_eos=True, stop=(middle,))
    assert finish == "stop"
    assert before == text[: text.index(middle)]
    assert shorter == tokens[: len(shorter)]
    assert middle in tokenizer.decode(shorter)
    assert middle not in tokenizer.decode(shorter[:-1])


async def test_programs_side_by_side_in_a_small_pool_answer_as_alone(made):
    tokenizer = made[1]
    prompts = [tokenizer.encode(text * 3) for text in TEXTS]
    alone, together = {}, {}
    async with make_engine(made) as engine:
        for index, prompt in enumerate(prompts):
            alone[index] = await answer(engine, f"alone-{index}", prompt)
    longest = max(len(prompt) for prompt in prompts) + 40
    crowded = make_engine(made, pages=-(-longest // PAGE) + 6, budget=9)

    async def one(index):
        together[index] = await answer(crowded, f"together-{index}", prompts[index])

    async with crowded, anyio.create_task_group() as group:
        for index in range(len(prompts)):
            group.start_soon(one, index)
    assert together == alone
    assert (
        crowded.statistics().scheduler.pages_pinned == crowded.statistics().scheduler.pages_leased
    )


async def test_recorded_text_is_forced_and_reads_back(made):
    tokenizer = made[1]
    recorded = tokenizer.encode("THOUGHT: café 🙂\n```bash\ncat a.py\n```")
    forced = [*recorded, min(tokenizer.eos_ids)]
    async with make_engine(made) as engine:
        request = EngineRequest("t", "p", tokenizer.encode(TEXTS[1]), forced=forced)
        stream = await engine.submit(request)
        with anyio.fail_after(60):
            chunks = [chunk async for chunk in stream]
    assert [token for chunk in chunks for token in chunk.tokens] == forced
    assert "".join(chunk.text for chunk in chunks) == tokenizer.decode(recorded)
    assert chunks[-1].finish == "stop"
