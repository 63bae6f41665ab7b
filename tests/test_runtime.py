"""The runtime with everything real but tiny: model, engine, scheduler, a process sandbox."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anyio
import pytest

from agentrt import ProgramState, Runtime, RuntimeConfig, SamplingParams, SandboxSpec
from agentrt.engine.model.make import make_model
from agentrt.errors import (
    BackendUnavailable,
    ConfigError,
    InvalidRequest,
    ModelError,
    ProgramTooLarge,
    SandboxUnavailable,
)
from agentrt.scheduling.plan import PinEnded, TurnFinished
from agentrt.tools import tool_name

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RuntimeConfig:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_model(directory, "qwen3", "tiny", 0, dtype="float32")
    return RuntimeConfig(
        model=str(directory), pool_tokens=512, page_size=4, sandbox=None, threads=1
    )


class TestTurns:
    async def test_same_prompt_same_tokens_and_the_second_is_cached(self, config):
        async with (
            Runtime.open(config) as runtime,
            runtime.program("a") as a,
            runtime.program("b") as b,
        ):
            first = await a.complete(range(5, 25), GREEDY)
            second = await b.complete(range(5, 25), GREEDY)
        assert first.tokens == second.tokens
        assert len(first.tokens) == 6
        assert first.finish_reason == "length"
        assert (first.stats.cached_tokens, second.stats.cached_tokens) == (0, 16)

    async def test_forced_tokens_come_out_and_are_computed(self, config):
        events = []
        async with (
            Runtime.open(config, on_event=events.append) as runtime,
            runtime.program() as program,
        ):
            result = await program.complete([5, 6, 7], forced=[9, 8, 7, 6])
        assert result.tokens == (9, 8, 7, 6)
        (finished,) = [event for event in events if isinstance(event, TurnFinished)]
        assert finished.stats.output_tokens == 4
        assert finished.stats.prefilled_tokens == 3

    async def test_a_conversation_extends_what_is_cached(self, config):
        messages = [{"role": "user", "content": "list the files, please"}]
        async with Runtime.open(config) as runtime, runtime.program() as program:
            first = await program.chat(messages, forced_text="ls -la")
            messages += [
                {"role": "assistant", "content": first.text},
                {"role": "user", "content": "thanks"},
            ]
            second = await program.chat(messages, forced_text="welcome", last=True)
        assert first.text == "ls -la"
        known = first.stats.prompt_tokens + first.stats.output_tokens - 1
        assert second.stats.cached_tokens == known // 4 * 4

    async def test_a_closed_set_of_answers_is_kept_to_and_can_be_built_upon(self, config):
        closed = SamplingParams(choices=("yes", "yes, but later", "no"), seed=1)
        messages = [{"role": "user", "content": "deploy?"}]
        async with Runtime.open(config) as runtime, runtime.program() as program:
            first = await program.chat(messages, sampling=closed)
            messages += [
                {"role": "assistant", "content": first.text},
                {"role": "user", "content": "sure?"},
            ]
            second = await program.chat(messages, sampling=closed)
        for answer in (first, second):
            assert answer.text in ("yes", "yes, but later", "no")
            assert answer.finish_reason == "stop"
        known = first.stats.prompt_tokens + first.stats.output_tokens - 1
        assert second.stats.cached_tokens == known // 4 * 4

    async def test_pins_of_an_ended_program_are_released(self, config):
        events = []
        async with Runtime.open(config, on_event=events.append) as runtime:
            async with runtime.program("a") as program:
                await program.complete(range(5, 25), GREEDY)
            with anyio.fail_after(10):
                while runtime.statistics().scheduler.pins:
                    await anyio.sleep(0.01)
        assert [e.outcome for e in events if isinstance(e, PinEnded)] == ["final"]

    async def test_closing_a_stream_cancels_its_turn(self, config):
        long = dataclasses.replace(GREEDY, max_tokens=400)
        async with Runtime.open(config) as runtime, runtime.program() as program:
            stream = await program.stream([5, 6, 7], long)
            async with stream:
                await anext(stream)
                assert program.state is ProgramState.THINKING
            assert program.state is ProgramState.READY
            with anyio.fail_after(10):
                while runtime.statistics().scheduler.pages_leased:
                    await anyio.sleep(0.01)
            with pytest.raises(BackendUnavailable, match="closed"):
                await stream.result()


class TestLimits:
    async def test_what_exceeds_the_context_or_the_pool_is_refused_by_name(self, config):
        async with Runtime.open(config) as runtime, runtime.program() as program:
            with pytest.raises(ProgramTooLarge, match="context"):
                await program.complete([5], SamplingParams(max_tokens=runtime.max_context))
            with pytest.raises(ProgramTooLarge, match="pool of 512 tokens"):
                await program.complete([5] * 400, SamplingParams(max_tokens=200))
            assert program.state is ProgramState.READY

    async def test_an_ended_program_takes_nothing_and_frees_its_name(self, config):
        async with Runtime.open(config) as runtime:
            program = runtime.program("a")
            with pytest.raises(InvalidRequest, match="open already"):
                runtime.program("a")
            await program.end()
            await program.end()
            with pytest.raises(InvalidRequest, match="has ended"):
                await program.complete([5], GREEDY)
            with pytest.raises(InvalidRequest, match="has ended"):
                await program.sandbox()
            await runtime.program("a").end()

    async def test_no_sandbox_unless_asked_for(self, config):
        async with Runtime.open(config) as runtime, runtime.program() as program:
            with pytest.raises(SandboxUnavailable, match="without sandboxes"):
                await program.sandbox()

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"dtype": "int3"}, ConfigError),
            ({"device": "abacus"}, ConfigError),
            ({"pool_tokens": 1}, ConfigError),
            ({"pool_tokens": 10**12}, ConfigError),
            ({"page_size": 0}, ConfigError),
            ({"policy": "lifo"}, ConfigError),
            ({"max_seqs": 0}, ConfigError),
            ({"sandbox": "cellar"}, ConfigError),
            ({"model": "/nonexistent"}, ModelError),
        ],
    )
    async def test_wrong_settings_name_the_remedy(self, config, change, error):
        with pytest.raises(error) as caught:
            async with Runtime.open(dataclasses.replace(config, **change)):
                pass
        assert caught.value.remedy


class TestSandboxes:
    async def test_a_tool_call_runs_is_reported_and_goes_with_the_program(self, config):
        async with Runtime.open(dataclasses.replace(config, sandbox="process")) as runtime:
            assert runtime.sandbox_choice.kind == "process"
            async with runtime.program() as program:
                box = await program.sandbox(SandboxSpec())
                seen = []
                done = await box.exec(
                    "echo hello; echo world >&2",
                    on_stdout=lambda data: seen.append(program.state),
                )
                assert (done.exit_code, done.stdout, done.stderr) == (0, b"hello\n", b"world\n")
                assert seen[0] is ProgramState.ACTING
                assert program.state is ProgramState.READY
                await box.write_file("note.txt", b"x")
                assert await box.read_file("note.txt") == b"x"
                place = Path((await box.exec("pwd")).stdout.decode().strip())
                assert place.is_dir()
            assert not place.exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("pytest -q", "pytest"),
        ("PYTHONPATH=. /usr/bin/python3 -m unittest", "python3"),
        (["/bin/ls", "-l"], "ls"),
        ([], "empty"),
        ("", "shell"),
        ("echo 'unfinished", "echo"),
    ],
)
async def test_a_tool_is_named_by_its_first_word(command, name):
    assert tool_name(command) == name
