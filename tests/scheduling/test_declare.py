"""A declared graph reaches the policy; one that contradicts itself reaches nobody."""

from __future__ import annotations

import pytest

from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.kv import PageCache
from agentrt.errors import InvalidRequest
from agentrt.scheduling import Scheduler
from agentrt.scheduling.graph import ExecutionGraphs
from agentrt.scheduling.graph_declared import Edge, Step
from agentrt.scheduling.graph_listener import DeclaredSteps
from agentrt.scheduling.hints import TurnHints
from agentrt.scheduling.policy import KeepNothing, Policy, by_arrival, lru_score

STEPS = [Step("plan"), Step("act")]
EDGES = [Edge("plan", "act", 1.0)]


def made() -> tuple[ExecutionGraphs, Scheduler]:
    graphs = ExecutionGraphs()
    listeners = (DeclaredSteps(graphs),)
    policy = Policy("follow", by_arrival, KeepNothing(lru_score), listeners=listeners)
    return graphs, Scheduler(PageCache(64, 4, lru_score), policy)


@pytest.mark.anyio
async def test_through_the_engine() -> None:
    graphs, scheduler = made()
    async with Engine(scheduler, FakeTurnBackend(4), check=True) as engine:
        engine.declare("p", STEPS, EDGES)
        stream = await engine.submit(
            EngineRequest("p/0", "p", [1, 2, 3], forced=[4], hints=TurnHints(step="plan"))
        )
        assert [chunk.finish async for chunk in stream][-1] == "stop"
        with pytest.raises(InvalidRequest, match="Declare"):
            engine.declare("p", [], [])
    assert dict(graphs.forecast("p").next_steps) == {"act": 1.0}
    assert graphs.steps_to_execution("p") == {"plan": 0, "act": 1}


def test_a_contradiction_reaches_nobody() -> None:
    graphs, scheduler = made()
    with pytest.raises(InvalidRequest, match="Declare"):
        scheduler.declare("p", STEPS, [Edge("plan", "nowhere")])
    assert graphs.forecast("p").tier == "cold"
