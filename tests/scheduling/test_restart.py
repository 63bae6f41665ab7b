"""All KV is lost in the middle of random histories: programs, queues and pages stay consistent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.kv import PageCache
from agentrt.errors import InternalError
from agentrt.scheduling import Scheduler, make_policy
from agentrt.scheduling.plan import TurnRequest
from agentrt.scheduling.tokens import TokenList
from tests.scheduling.driver import POLICIES, Driver, ProgramScript, TurnScript
from tests.scheduling.memory import LateLink, Memory
from tests.scheduling.test_scheduler_properties import configs, hosts, lags, program_scripts


class RestartingDriver(Driver):
    """Loses all KV, with what is being copied, before the plans with the given numbers."""

    def __init__(self, *arguments, restarts, **options):
        super().__init__(*arguments, **options)
        self.restarts = restarts
        self.plans = 0
        self.lost_loads = 0

    def _plan(self):
        self.plans += 1
        if self.plans in self.restarts:
            running = self.scheduler._book.running
            self.lost_loads += sum(turn.loading is not None for turn in running)
            self.scheduler.restart(self.backend.now)
            self.memory = Memory(self.kv.page_size)  # whoever reads what was lost is caught by it
            self.link = LateLink((0,))
            self._take(self.scheduler.take_events())
            self.scheduler.check_integrity()
            counts = self.scheduler.statistics()
            assert (counts.running, counts.pins, counts.transfers) == (0, 0, 0)
            assert counts.pages_free == counts.pages_total
        return super()._plan()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10, deadline=None)
@given(
    programs=st.lists(program_scripts, min_size=1, max_size=5),
    pool=st.integers(6, 24),
    config=configs,
    host=hosts,
    lags=lags,
    restarts=st.frozensets(st.integers(1, 40), min_size=1, max_size=6),
)
def test_every_turn_ends_once_and_nothing_leaks(
    policy, programs, pool, config, host, lags, restarts
):
    driver = RestartingDriver(
        policy, programs, pool=pool, config=config, host=host, lags=lags, restarts=restarts
    )
    log = driver.run()
    assert set(log.stats) == set(driver._where)
    for turn_id, stats in log.stats.items():
        program, index = driver._where[turn_id]
        if stats.reason == "length":
            assert stats.output_tokens == programs[program].turns[index].output
    for script in range(len(programs)):
        driver.scheduler.end_program(str(script), driver.backend.now)
    driver.scheduler.check_integrity()
    assert driver.kv.available() == pool
    assert driver.host is None or driver.host.available() == host


@pytest.mark.parametrize("cancel_after", [None, 1])
def test_turns_that_wait_for_a_copy_from_the_host_are_computed_instead(cancel_after):
    """Five programs in a pool for two, so that the host brings back what was evicted."""
    turns = [TurnScript(14, 8, 3.0, "bash") for _ in range(3)]
    turns[2] = replace(turns[2], cancel_after=cancel_after)
    programs = [ProgramScript(0.5 * i, turns) for i in range(5)]
    lost = 0
    for number in range(1, 130, 3):
        driver = RestartingDriver(
            "agentrt", programs, pool=24, host=80, lags=(4,), restarts={number}
        )
        log = driver.run()
        lost += driver.lost_loads
        assert len(log.stats) == 15
    assert lost > 0


def test_not_while_a_step_is_under_way():
    policy = make_policy("fcfs")
    scheduler = Scheduler(PageCache(8, 4, policy.retention.score), policy)
    scheduler.submit(TurnRequest("t", "p", TokenList([1, 2, 3]), 4), 0.0)
    assert scheduler.plan(0.0).slices
    with pytest.raises(InternalError, match="while a step was under way"):
        scheduler.restart(1.0)
