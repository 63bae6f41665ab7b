"""Small simulated clusters for tests."""

from __future__ import annotations

from agentrt.bench.recorder import Recorder
from agentrt.bench.records import RunRecord
from agentrt.cluster import Router, make_placement
from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.simulation.cluster import ClusterSimulation
from agentrt.simulation.cost import CostModel
from agentrt.simulation.groups import Group
from agentrt.simulation.network import Network
from agentrt.simulation.worker import SimulatedWorker
from tests.bench.builders import COST

PAGE = 16


def group(
    name: str = "worker",
    *,
    count: int = 1,
    placement: str = "agentrt",
    policy: str = "fcfs",
    pages: int = 64,
    cost: CostModel = COST,
    max_wait: float = 600.0,
    jump: bool = True,
    network: Network | None = None,
) -> Group:
    def make(worker: str) -> SimulatedWorker:
        made = make_policy(policy, Surroundings(prefill_seconds=cost.prefill_seconds))
        cache = PageCache(pages, PAGE, made.retention.score)
        config = SchedulerConfig(
            token_budget=cost.token_budget,
            max_seqs=cost.max_seqs,
            max_wait=max_wait,
            reserve="output" if cost.reserve_output else "prompt",
        )
        return SimulatedWorker(worker, Scheduler(cache, made, config), cache, cost, jump=jump)

    moving = (lambda tokens: 0.0) if network is None else network.seconds
    made = Group(name, Router(make_placement(placement), move_seconds=moving), make)
    made.grow(count, 0.0)
    return made


def network(bandwidth: float = 1e9, latency: float = 0.0) -> Network:
    return Network(bandwidth, latency, token_bytes=1000)


def simulate(arrivals, serving: Group, wire: Network | None = None, **options) -> RunRecord:
    """Run a cluster, check that nothing is lost, and return its records."""
    record = RunRecord("any", 0, "simulated", 1024, "tiny")
    wire = wire or network()
    simulation = ClusterSimulation(arrivals, serving, Recorder(record), wire, **options)
    record.complete = simulation.run()
    simulation.check_integrity()
    groups = [serving, *([options["decoding"]] if options.get("decoding") else [])]
    for one in groups:
        assert one.router.statistics().live == 0
        for worker in one.workers.values():
            assert worker.scheduler.statistics().pages_leased == 0
    return record
