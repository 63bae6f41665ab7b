"""A tool's output computed while it runs: the same answers, sooner. Real model, real engine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.bench.streaming import measure_streaming
from agentrt.engine.model.make import make_model
from agentrt.errors import InvalidRequest

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
START = [{"role": "system", "content": "You fix code."}, {"role": "user", "content": "Fix it."}]

LINES = st.sampled_from(
    [
        "def f(x):",
        "    return x + 1",
        "",
        "ok 1 - works as it should",
        "é 漢字 🙂",
        "\t1\t2",
        "E   x",
    ]
)
OUTPUTS = st.lists(LINES, min_size=1, max_size=90).map("\n".join)
CUTS = st.lists(st.integers(1, 400), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RuntimeConfig:
    directory: Path = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return RuntimeConfig(
        model=str(directory), pool_tokens=4096, page_size=8, sandbox=None, threads=1
    )


async def answers(config, output, cuts, *, streamed, changed):
    """Return the answers of a program that reads ``output`` twice, and tokens computed ahead.

    ``changed`` is what the tool's output becomes after it was streamed.
    """
    said = []
    async with Runtime.open(config) as runtime, runtime.program("p") as program:
        messages = list(START)
        for final in (output, changed):
            first = await program.chat(messages, sampling=GREEDY)
            messages.append({"role": "assistant", "content": first.text})
            result = {"role": "tool", "content": output[:3]}
            opened = program.open_chat([*messages, result]) if streamed else None
            if opened is not None:
                await write(opened, output[3:].encode(), cuts)
            messages.append({"role": "tool", "content": final})
            reply = await program.chat(messages, sampling=GREEDY, opened=opened)
            said += [first.tokens, reply.tokens]
            messages.append({"role": "assistant", "content": reply.text})
            messages.append({"role": "user", "content": "Go on."})
        figures = runtime.statistics().scheduler
    assert figures.opened == 0
    return said, figures.streamed_tokens


async def write(opened, data, cuts):
    at = 0
    while at < len(data):
        for cut in cuts:
            opened.write(data[at : at + cut])
            at += cut
        await anyio.sleep(0.002)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(OUTPUTS, CUTS, st.integers(0, 60))
def test_streamed_or_not_the_answers_are_the_same(config, output, cuts, cut):
    changed = output[: max(len(output) - cut, 1)] + "\n(cut)" * (cut % 2)
    plain, none = anyio.run(lambda: answers(config, output, cuts, streamed=False, changed=changed))
    streamed, _ = anyio.run(lambda: answers(config, output, cuts, streamed=True, changed=changed))
    assert streamed == plain
    assert none == 0


@pytest.mark.anyio
class TestOpenChat:
    async def test_a_running_tool_is_read_while_it_runs(self, config):
        script = (
            "import time\nfor i in range(60):\n    print('line', i, 'of the output', flush=True)\n"
        )
        script += "    time.sleep(0.02)\n"
        trusted = RuntimeConfig(**{**vars_of(config), "sandbox": "process", "trusted": True})
        async with Runtime.open(trusted) as runtime, runtime.program("p") as program:
            messages = list(START)
            first = await program.chat(messages, sampling=GREEDY)
            messages.append({"role": "assistant", "content": first.text})
            box = await program.sandbox()
            seen = []
            with program.open_chat([*messages, {"role": "tool", "content": ""}]) as opened:
                done = await box.exec(
                    shlex.join([sys.executable, "-c", script]),
                    feed=opened,
                    on_stdout=seen.append,
                )
                ahead = runtime.statistics().scheduler.streamed_tokens
                messages.append({"role": "tool", "content": done.stdout.decode()})
                reply = await program.chat(messages, sampling=GREEDY, opened=opened)
        assert b"".join(seen) == done.stdout
        assert ahead > 100
        assert reply.stats.cached_tokens >= ahead // 2
        assert reply.stats.cached_tokens > 0.6 * reply.stats.prompt_tokens

    async def test_one_that_is_not_taken_is_given_up(self, config):
        async with Runtime.open(config) as runtime, runtime.program("p") as program:
            with program.open_chat([*START, {"role": "tool", "content": "x"}]) as opened:
                opened.write("a line of words\n" * 40)
            opened.write("more")
            await program.chat(START, sampling=GREEDY)
            assert runtime.statistics().scheduler.opened == 0

    async def test_output_beyond_the_models_context_is_left_out(self, config, caplog):
        caplog.set_level("INFO")
        async with Runtime.open(config) as runtime, runtime.program("p") as program:
            with program.open_chat([*START, {"role": "tool", "content": ""}]) as opened:
                for _ in range(2000):
                    opened.write("some words that fill the context of the model\n" * 10)
            assert "exceed the model's context" in caplog.text
            assert runtime.statistics().state == "running"

    async def test_messages_that_make_no_prompt_are_refused(self, config):
        async with Runtime.open(config) as runtime, runtime.program("p") as program:
            with pytest.raises(InvalidRequest, match="no messages"):
                program.open_chat([])

    async def test_the_measure_runs_and_its_figures_fit(self, config):
        trusted = RuntimeConfig(**{**vars_of(config), "sandbox": "process", "trusted": True})
        gain = await measure_streaming(trusted, tokens=300, seconds=0.3, repeats=1)
        assert 0.5 < gain.ahead < 1
        assert gain.to_json()["ratio"] == gain.plain / gain.streamed


def vars_of(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
