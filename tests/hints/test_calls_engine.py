"""The tool that an answer calls reaches the policy, unless the client said it."""

from __future__ import annotations

from functools import partial

import pytest

from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.kv import PageCache
from agentrt.hints.calls import called_tool
from agentrt.scheduling import Scheduler
from agentrt.scheduling.policy import KeepNothing, Policy, TurnView, by_arrival, lru_score
from agentrt.tools import tool_name
from tests.serving.fakes import CharTokenizer

CALL = 'I look. <tool_call>{"name": "read", "arguments": {}}</tool_call>'


class Tools(KeepNothing):
    """Retention that writes down each turn's tool."""

    def __init__(self) -> None:
        super().__init__(lru_score)
        self.seen: list[str | None] = []

    def turn_ended(self, turn: TurnView, now: float) -> float:
        self.seen.append(turn.tool)
        return 0.0


def broken(text: str) -> str | None:
    raise ValueError("no such luck")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "hint", "tool"),
    [(CALL, None, "read"), (CALL, "bash:test", "bash:test"), ("I am done.", None, None)],
)
async def test_the_policy_is_told(text: str, hint: str | None, tool: str | None) -> None:
    notes, tokenizer = Tools(), CharTokenizer()
    scheduler = Scheduler(PageCache(64, 4, lru_score), Policy("notes", by_arrival, notes))
    backend = FakeTurnBackend(4, tokenizer.vocab_size)
    recognise = partial(called_tool, command_name=tool_name)
    async with Engine(
        scheduler, backend, tokenizer=tokenizer, check=True, called_tool=recognise
    ) as engine:
        request = EngineRequest(
            "p/0", "p", tokenizer.encode("look"), forced=tokenizer.encode(text), next_tool=hint
        )
        stream = await engine.submit(request)
        said = [chunk.text async for chunk in stream]
    assert "".join(said) == text
    assert notes.seen == [tool]


@pytest.mark.anyio
async def test_what_cannot_be_recognised_stops_nothing() -> None:
    notes, tokenizer = Tools(), CharTokenizer()
    scheduler = Scheduler(PageCache(64, 4, lru_score), Policy("notes", by_arrival, notes))
    backend = FakeTurnBackend(4, tokenizer.vocab_size)
    async with Engine(
        scheduler, backend, tokenizer=tokenizer, check=True, called_tool=broken
    ) as engine:
        request = EngineRequest("p/0", "p", [1, 2], forced=tokenizer.encode(CALL[:5]))
        stream = await engine.submit(request)
        assert "".join([chunk.text async for chunk in stream]) == CALL[:5]
    assert notes.seen == [None]
