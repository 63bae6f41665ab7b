"""A whole engine on the Triton kernels: the tokens of the torch path, with a cached prefix too."""

from __future__ import annotations

import pytest

from agentrt import Runtime, RuntimeConfig, SamplingParams

GREEDY = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_turns_are_the_same(device, tiny_models):
    answers = []
    for attention, steps in (("triton", "off"), ("triton", "on"), ("torch", "off")):
        config = RuntimeConfig(
            model=str(tiny_models("qwen3")),
            attention=attention,
            graphs=steps,  # recorded on CUDA, replayed by hand elsewhere
            overlap=steps,
            max_seqs=2,
            device=device.type,
            dtype="float32",
            policy="fcfs",
            pool_tokens=128,
            page_size=4,
            threads=1,
            draft="off",
            measure=False,
            sandbox=None,
        )
        prompt = list(range(5, 16))
        async with Runtime.open(config) as runtime, runtime.program() as program:
            for _ in range(2):
                answer = await program.complete(prompt, GREEDY)
                prompt += [*answer.tokens, 3]
            assert answer.stats.cached_tokens >= 8
        answers.append(prompt)
    assert answers[0] == answers[1] == answers[2]
