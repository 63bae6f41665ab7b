"""Random turns, steals and workers that come and go: every turn keeps exactly one live worker."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentrt.cluster import Router, TurnAsk, make_placement, placement_names

LEAST_WORKERS = 2


class RouterMachine(RuleBasedStateMachine):
    """Holds a model beside the router: which turns live, and on which worker."""

    @initialize(
        name=st.sampled_from(placement_names()), steal=st.booleans(), wait=st.sampled_from([0, 3])
    )
    def begin(self, name: str, steal: bool, wait: int) -> None:
        placement = make_placement(name, steal=steal)
        self.router = Router(placement, move_seconds=lambda tokens: wait)
        self.now = 0.0
        self.numbers = iter(range(10**6))
        self.workers: set[str] = set()
        self.where: dict[str, str] = {}
        self.started: set[str] = set()
        self.proposed: list = []
        for _ in range(LEAST_WORKERS):
            self.add_worker(seats=4)

    @rule(seats=st.integers(1, 8))
    def add_worker(self, seats: int) -> None:
        name = f"w{next(self.numbers)}"
        self.router.add_worker(name, capacity=1000, seats=seats, now=self.now)
        self.workers.add(name)

    @rule(program=st.integers(0, 7), prompt=st.integers(1, 400), keys=st.integers(0, 3))
    def submit(self, program: int, prompt: int, keys: int) -> None:
        turn = f"p{program}/{next(self.numbers)}"
        wanted = TurnAsk(turn, f"p{program}", prompt, 10, tuple(range(keys)), 16)
        placed = self.router.submit(wanted, self.now)
        siblings = {self.where[one] for one in self.where if one.startswith(f"p{program}/")}
        assert siblings in ({placed.worker}, set())
        assert placed.worker in self.workers | siblings
        assert placed.source != placed.worker
        self.where[turn] = placed.worker

    @precondition(lambda self: self.where)
    @rule(data=st.data())
    def start(self, data) -> None:
        turn = data.draw(st.sampled_from(sorted(self.where)))
        self.router.started(turn, self.now)
        self.started.add(turn)

    @precondition(lambda self: self.where)
    @rule(data=st.data(), tokens=st.integers(1, 500))
    def finish(self, data, tokens: int) -> None:
        turn = data.draw(st.sampled_from(sorted(self.where)))
        self.router.finished(turn, tokens, self.now)
        del self.where[turn]

    @rule(program=st.integers(0, 7))
    def end(self, program: int) -> None:
        self.router.end_program(f"p{program}", self.now)
        gone = [turn for turn in self.where if turn.startswith(f"p{program}/")]
        for turn in gone:
            del self.where[turn]
        assert self.router.home(f"p{program}") is None

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def propose(self) -> None:
        steals = self.router.rebalance(self.now)
        assert len({steal.turn_id for steal in steals}) == len(steals)
        for steal in steals:
            assert steal.turn_id not in self.started
            assert self.where[steal.turn_id] == steal.source != steal.target
        self.proposed += steals

    @precondition(lambda self: self.proposed)
    @rule()
    def accept(self) -> None:
        steal = self.proposed.pop(0)
        moved = self.router.accept_steal(steal, self.now)
        if moved is not None:
            assert self.where[steal.turn_id] == steal.source
            assert steal.turn_id not in self.started
            self.where[steal.turn_id] = moved.worker
            assert self.router.home(moved.program_id) == moved.worker

    def _apply(self, moved) -> None:
        for row in moved:
            assert row.worker in self.workers
            self.where[row.turn_id] = row.worker

    @precondition(lambda self: len(self.workers) > LEAST_WORKERS)
    @rule(data=st.data())
    def drain(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.workers.discard(name)
        self._apply(self.router.drain_worker(name, self.now))

    @precondition(lambda self: len(self.workers) > LEAST_WORKERS)
    @rule(data=st.data())
    def lose(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.workers.discard(name)
        lost = {turn for turn, worker in self.where.items() if worker == name}
        moved = self.router.remove_worker(name, self.now)
        assert {row.turn_id for row in moved} == lost
        self._apply(moved)
        self.started -= lost

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "router"):
            self.router.check_integrity()
            assert self.router.statistics().live == len(self.where)


RouterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRouterProperties = RouterMachine.TestCase
