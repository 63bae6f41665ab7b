"""Turns that are opened before their input is complete, on the engine's own thread."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from agentrt.engine.engine import EngineRequest
from agentrt.engine.fake import FakeTurnBackend, fake_output
from agentrt.engine.params import SamplingParams
from agentrt.errors import InvalidRequest, ProgramTooLarge
from tests.engine.test_engine import PAGE, VOCAB, Gate, ask, make_engine, make_scheduler, read

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def seal(opened, tokens=5, turn_id="sealed", prompt=None):
    sampling = SamplingParams(max_tokens=tokens, temperature=0)
    return opened.seal(EngineRequest(turn_id, "p", prompt or opened.tokens, sampling))


async def computed(engine, tokens):
    """Wait until so many tokens have been computed ahead."""
    with anyio.fail_after(20):
        while engine.statistics().scheduler.streamed_tokens < tokens:
            await anyio.sleep(0.001)


class TestSealing:
    async def test_what_was_computed_ahead_is_not_computed_again(self):
        async with make_engine() as engine:
            opened = engine.open(range(10), turn_id="o", program_id="p")
            opened.append(range(10, 30))
            await computed(engine, 28)
            opened.append([1, 2, 3])
            await computed(engine, 32)
            stream = await seal(opened)
            tokens, _ = await read(stream)
        assert tokens == fake_output([*range(30), 1, 2, 3], 5, VOCAB)
        assert stream.stats.cached_tokens == 32
        assert stream.stats.prefilled_tokens == 1

    async def test_a_changed_tail_costs_only_what_follows_it(self):
        async with make_engine() as engine:
            opened = engine.open(range(30), turn_id="o", program_id="p")
            await computed(engine, 28)
            opened.revise(17, [5, 5, 5, 5, 5, 5, 5, 5])
            await computed(engine, 28 + 8)
            assert opened.tokens == [*range(17), *[5] * 8]
            stream = await seal(opened)
            tokens, _ = await read(stream)
            assert engine.statistics().scheduler.streamed_tokens == 28 + 8
        assert tokens == fake_output([*range(17), *[5] * 8], 5, VOCAB)
        assert stream.stats.cached_tokens == 24

    async def test_the_sealed_prompt_counts_whatever_was_opened(self):
        async with make_engine() as engine:
            opened = engine.open(range(30), turn_id="o", program_id="p")
            await computed(engine, 28)
            stream = await seal(opened, prompt=[*range(13), 9, 9, 9, 9])
            tokens, _ = await read(stream)
        assert tokens == fake_output([*range(13), 9, 9, 9, 9], 5, VOCAB)
        assert stream.stats.cached_tokens == 12

    async def test_sealed_at_once(self):
        async with make_engine() as engine:
            opened = engine.open([1, 2, 3], turn_id="o", program_id="p")
            tokens, _ = await read(await seal(opened))
        assert tokens == fake_output([1, 2, 3], 5, VOCAB)

    async def test_a_refused_seal_leaves_nothing_open(self):
        scheduler = make_scheduler()
        async with make_engine(scheduler) as engine:
            opened = engine.open(range(20), turn_id="o", program_id="p")
            await computed(engine, 16)
            with pytest.raises(ProgramTooLarge):
                await seal(opened, tokens=10_000)
            tokens, _ = await read(await engine.submit(ask(range(20))))
        assert tokens == fake_output(list(range(20)), 5, VOCAB)
        assert scheduler.statistics().opened == 0


class TestGivingUp:
    async def test_closed_ones_leave_their_pages_to_others(self):
        scheduler = make_scheduler(pages=8)
        async with make_engine(scheduler) as engine:
            with engine.open(range(30), turn_id="o", program_id="p") as opened:
                await computed(engine, 28)
            tokens, _ = await read(await engine.submit(ask([7] * 20, tokens=8)))
        assert tokens == fake_output([7] * 20, 8, VOCAB)
        assert scheduler.statistics().opened == 0
        assert repr(opened) == "<OpenTurn o [ended, 30 tokens]>"

    async def test_a_program_that_ends_takes_its_open_turns_along(self):
        scheduler = make_scheduler()
        async with make_engine(scheduler) as engine:
            opened = engine.open(range(30), turn_id="o", program_id="p")
            await computed(engine, 28)
            engine.end_program("p")
            await read(await engine.submit(ask([7], program_id="q")))
            assert scheduler.statistics().opened == 0
            assert scheduler.statistics().pages_leased == 0
            opened.append([1])
            tokens, _ = await read(await seal(opened))
        assert tokens == fake_output([*range(30), 1], 5, VOCAB)

    async def test_after_its_end_it_takes_nothing(self):
        async with make_engine() as engine:
            opened = engine.open([1], turn_id="o", program_id="p")
            opened.close()
            opened.close()
            with pytest.raises(InvalidRequest, match="sealed or closed"):
                opened.append([2])
            with pytest.raises(InvalidRequest, match="sealed or closed"):
                await seal(opened)

    async def test_what_makes_no_sense_is_refused(self):
        engine = make_engine()
        with pytest.raises(InvalidRequest, match="prefix is empty"):
            engine.open([], turn_id="o", program_id="p")
        opened = engine.open([1, 2], turn_id="o", program_id="p")
        for keep, tokens in ((3, [1]), (-1, [1]), (0, [])):
            with pytest.raises(InvalidRequest, match="tokens are to be kept"):
                opened.revise(keep, tokens)


class TestOthers:
    async def test_a_turn_that_needs_the_pages_gets_them(self):
        scheduler = make_scheduler(pages=10)
        async with make_engine(scheduler) as engine:
            opened = engine.open(range(33), turn_id="o", program_id="p")
            await computed(engine, 32)
            tokens, _ = await read(await engine.submit(ask([7] * 24, tokens=12, program_id="q")))
            assert tokens == fake_output([7] * 24, 12, VOCAB)
            tokens, _ = await read(await seal(opened))
        assert tokens == fake_output(list(range(33)), 5, VOCAB)

    async def test_bad_tokens_hurt_nobody_and_are_refused_with_the_turn(self, caplog):
        async with make_engine() as engine:
            opened = engine.open([VOCAB + 1], turn_id="o", program_id="p")
            grown = engine.open([1, 2], turn_id="o2", program_id="p")
            grown.append([-1])
            tokens, _ = await read(await engine.submit(ask([1, 2, 3])))
            assert tokens == fake_output([1, 2, 3], 5, VOCAB)
            for number, one in enumerate((opened, grown)):
                with pytest.raises(InvalidRequest, match="vocabulary"):
                    await seal(one, turn_id=f"sealed{number}")
        assert "is not computed ahead" in caplog.text

    async def test_a_step_that_fails_ends_the_open_turn_and_no_other(self):
        broken = []

        def before(plan):
            if any(piece.turn_id == "o" for piece in plan.slices) and not broken:
                broken.append(plan)
                raise RuntimeError("the device is gone")

        async with make_engine(backend=FakeTurnBackend(PAGE, VOCAB, before=before)) as engine:
            opened = engine.open(range(30), turn_id="o", program_id="p")
            with anyio.fail_after(20):
                while not engine.statistics().failed_steps:
                    await anyio.sleep(0.001)
            stream = await seal(opened)
            tokens, _ = await read(stream)
        assert tokens == fake_output(list(range(30)), 5, VOCAB)
        assert stream.stats.cached_tokens == 0

    async def test_nothing_is_computed_ahead_while_turns_wait(self):
        gate = Gate()
        scheduler = make_scheduler(max_seqs=2)
        engine = make_engine(scheduler, FakeTurnBackend(PAGE, VOCAB, before=gate))
        async with engine:
            streams = [await engine.submit(ask([1], tokens=4))]
            await gate.step()
            engine.open(range(40), turn_id="o", program_id="p")
            rest = [ask([number], tokens=4, program_id=f"q{number}") for number in range(3)]
            async with anyio.create_task_group() as group:
                for request in rest:
                    group.start_soon(collect, engine, request, streams)
                await anyio.lowlevel.checkpoint()
                for _ in range(3):
                    gate.release(once=True)
                    await gate.step()
                    figures = scheduler.statistics()
                    assert not figures.waiting or not figures.streamed_tokens
                gate.release()
            for stream in streams:
                await read(stream)
            await computed(engine, 36)


async def collect(engine, request, streams):
    streams.append(await engine.submit(request))
