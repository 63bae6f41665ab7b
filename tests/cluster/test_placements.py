"""Each placement's choice, on clusters small enough to work out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from agentrt.cluster import Router, TurnAsk, make_placement, placement_names
from agentrt.cluster.affinity import BoundedAffinity
from agentrt.cluster.hashing import rendezvous
from agentrt.errors import ConfigError


def router(placement: str, workers: int = 3, capacity: int = 1000, **options) -> Router:
    made = Router(make_placement(placement), **options)
    for number in range(workers):
        made.add_worker(f"w{number}", capacity=capacity, seats=8, now=0.0)
    return made


def ask(program: str, turn: int = 0, prompt: int = 100, output: int = 20, **rest) -> TurnAsk:
    return TurnAsk(f"{program}/{turn}", program, prompt, output, **rest)


def play(made: Router, wanted: TurnAsk, now: float = 0.0) -> str:
    """Place a turn, run it and end it; return its worker."""
    placed = made.submit(wanted, now)
    made.started(wanted.turn_id, now)
    made.finished(wanted.turn_id, wanted.demand, now + 1.0)
    made.check_integrity()
    return placed.worker


def test_round_robin_goes_round():
    made = router("round-robin")
    assert [made.submit(ask(f"p{n}"), 0.0).worker for n in range(4)] == ["w0", "w1", "w2", "w0"]


def test_least_loaded_follows_the_demand():
    made = router("least-loaded")
    made.submit(ask("a", prompt=500), 0.0)
    made.submit(ask("b", prompt=100), 0.0)
    made.submit(ask("c", prompt=200), 0.0)
    assert made.submit(ask("d", prompt=10), 0.0).worker == "w1"


def test_affinity_goes_home_below_its_bound_and_leaves_above_it():
    made = router("affinity=0.5")
    home = play(made, ask("a"))
    assert made.submit(ask("a", 1, prompt=130), 2.0).worker == home
    made.started("a/1", 2.0)
    made.finished("a/1", 150, 3.0)
    fillers = (made.submit(ask(f"x{n}", prompt=500), 3.0).worker for n in range(3))
    assert home in fillers
    moved = made.submit(ask("a", 2, prompt=160), 4.0)
    assert moved.worker != home
    assert (moved.source, moved.tokens) == (home, 150)


def test_saga_is_affinity_as_published_with_steals_at_any_price():
    made = make_placement("saga")
    assert made.steal is not None
    assert (made.rule, made.migrates, made.steal.patient) == (BoundedAffinity(0.8), True, False)
    assert (made.steal.idle_seconds, made.steal.ratio) == (0.1, 2.0)


def test_two_hash_takes_one_of_its_two_candidates_and_keeps_to_the_hit():
    made = router("two-hash", workers=6)
    names = [f"w{n}" for n in range(6)]
    for number in range(12):
        program = f"p{number}"
        first = play(made, ask(program))
        assert first in rendezvous(program, names, 2)
        assert play(made, ask(program, 1, prompt=150)) == first


def test_two_hash_leaves_a_hit_that_breaks_its_objective():
    made = router("two-hash=0.02", workers=2, capacity=10_000)
    home = play(made, ask("a"))
    names = (f"b{number}" for number in range(20))
    neighbour = next(name for name in names if play(made, ask(name)) == home)
    assert play(made, ask("a", 1, prompt=150)) == home
    # At 0.09 ms a token: 210 tokens ahead of it and 30 of its own are more than 20 ms.
    assert made.submit(ask(neighbour, 1, prompt=330), 1.0).worker == home
    assert made.submit(ask("a", 2, prompt=200), 1.0).worker != home


def test_prefix_aware_exploits_a_long_match_and_explores_otherwise():
    made = router("prefix")
    system = tuple(range(8))
    first = play(made, ask("a", prompt=100, keys=system, key_tokens=10))
    # 80 of 100 tokens are there already: worth it even though that worker has work.
    assert play(made, ask("b", prompt=100, keys=(*system, 90), key_tokens=10)) == first
    made.submit(ask("c", prompt=100, keys=(1000,), key_tokens=10), 5.0)
    # 20 of 100 tokens match: the least work decides.
    placed = made.submit(ask("d", prompt=100, keys=(0, 1, 77), key_tokens=10), 5.0)
    assert placed.worker in {"w0", "w1", "w2"}
    assert made.worker(placed.worker).live == 1


def test_agentrt_balances_working_sets_not_momentary_load():
    made = router("agentrt")
    for number, prompt in enumerate((600, 300, 100)):
        play(made, ask(f"p{number}", prompt=prompt))
    # Nothing runs any more; the working sets decide where the next session starts.
    assert play(made, ask("new", prompt=50)) == "w2"
    assert play(made, ask("p0", 1, prompt=700)) == "w0"


def test_every_placement_spreads_programs_over_all_workers():
    for name in placement_names():
        made = router(name, workers=4, capacity=10_000)
        workers = Counter()
        for number in range(80):
            workers[made.submit(ask(f"p{number}"), float(number)).worker] += 1
        assert set(workers) == {"w0", "w1", "w2", "w3"}, name
        made.check_integrity()


@pytest.mark.parametrize("spec", ["nothing", "affinity=x", "affinity=-1", "round-robin=3"])
def test_a_wrong_placement_is_explained(spec):
    with pytest.raises(ConfigError, match=r"Choose one of|Write"):
        make_placement(spec)


def test_stealing_can_be_switched_off_and_on():
    assert make_placement("agentrt").steal is not None
    assert make_placement("agentrt", steal=False).steal is None
    assert make_placement("prefix", steal=True).steal is not None
