"""The router's life cycle: turns, steals, workers that come and go."""

from __future__ import annotations

import pytest

from agentrt.cluster import Router, make_placement
from agentrt.errors import BackendUnavailable, ConfigError, InvalidRequest
from tests.cluster.test_placements import ask, play, router


def crowded(move_seconds: float = 0.0) -> Router:
    """``w0`` runs one turn and has two waiting, of sessions with history; the others are idle."""
    made = router("agentrt", workers=1, move_seconds=lambda tokens: move_seconds)
    for name in ("a", "b", "c"):
        play(made, ask(name))
    made.add_worker("w1", capacity=1000, seats=8, now=0.0)
    for number, name in enumerate(("a", "b", "c")):
        made.submit(ask(name, 1, prompt=130), 10.0 + number)
    made.started("a/1", 10.0)
    return made


def test_an_idle_worker_takes_the_oldest_waiting_session():
    made = crowded()
    (steal,) = made.rebalance(20.0)
    assert (steal.turn_id, steal.source, steal.target) == ("b/1", "w0", "w1")
    moved = made.accept_steal(steal, 20.0)
    assert moved is not None
    assert (moved.worker, moved.source, moved.tokens) == ("w1", "w0", 120)
    # Affinity moves with the session.
    assert made.home("b") == "w1"
    made.started("b/1", 21.0)
    made.finished("b/1", 150, 22.0)
    assert made.submit(ask("b", 2, prompt=160), 23.0).worker == "w1"
    made.check_integrity()
    assert made.statistics().steals == 1


def test_a_proposal_changes_nothing_until_it_is_accepted():
    made = crowded()
    before = made.statistics()
    made.rebalance(20.0)
    assert made.statistics() == before


@pytest.mark.parametrize("change", ["started", "finished", "ended", "again"])
def test_a_stale_steal_is_rejected(change):
    made = crowded()
    (steal,) = made.rebalance(20.0)
    if change == "started":
        made.started("b/1", 20.0)
    elif change == "finished":
        made.finished("b/1", 150, 20.0)
    elif change == "ended":
        made.end_program("b", 20.0)
    else:
        assert made.accept_steal(steal, 20.0) is not None
    before = made.statistics()
    assert made.accept_steal(steal, 20.0) is None
    after = made.statistics()
    assert (after.stale, after.steals) == (before.stale + 1, before.steals)
    made.check_integrity()


def test_a_session_moves_only_once_it_has_waited_as_long_as_its_migration_takes():
    made = crowded(move_seconds=9.0)
    assert made.rebalance(19.9) == []
    assert [steal.turn_id for steal in made.rebalance(20.1)] == ["b/1"]


def test_workers_that_are_alike_do_not_steal_from_each_other():
    made = router("agentrt", workers=2)
    for name in ("a", "b", "c", "d"):
        play(made, ask(name))
    for name in ("a", "b", "c", "d"):
        made.submit(ask(name, 1, prompt=130), 10.0)
    made.started("a/1", 10.0)
    made.started("c/1", 10.0)
    made.started("b/1", 10.0)
    # Every worker has two live turns: whoever has nothing waiting still has no right to steal.
    assert made.rebalance(100.0) == []


def test_a_lone_waiting_turn_is_left_where_it_is():
    made = router("agentrt", workers=1)
    play(made, ask("a"))
    made.add_worker("w1", capacity=1000, seats=8, now=0.0)
    made.submit(ask("a", 1, prompt=130), 10.0)
    assert made.rebalance(100.0) == []


def test_live_turns_of_a_program_stay_together():
    made = router("least-loaded", workers=3)
    first = made.submit(ask("a"), 0.0).worker
    assert {made.submit(ask("a", n), 0.0).worker for n in range(1, 5)} == {first}


def test_draining_moves_what_waits_and_lets_the_rest_end():
    made = crowded()
    moved = made.drain_worker("w0", 30.0)
    assert {row.turn_id for row in moved} == {"b/1", "c/1"}
    assert {row.worker for row in moved} == {"w1"}
    assert made.statistics().live == 3
    made.finished("a/1", 150, 31.0)
    back = made.submit(ask("a", 2, prompt=160), 32.0)
    assert (back.worker, back.source, back.tokens) == ("w1", "w0", 150)
    assert made.remove_worker("w0", 33.0) == []
    made.check_integrity()


def test_a_lost_workers_turns_are_placed_anew_and_its_kv_is_gone():
    made = crowded()
    again = made.remove_worker("w0", 30.0)
    assert {row.turn_id for row in again} == {"a/1", "b/1", "c/1"}
    assert all(row.worker == "w1" and row.tokens == 0 for row in again)
    assert made.statistics().lost == 3
    made.check_integrity()


def test_the_last_worker_cannot_be_drained():
    made = router("agentrt", workers=1)
    with pytest.raises(BackendUnavailable):
        made.drain_worker("w0", 0.0)
    assert made.submit(ask("a"), 0.0).worker == "w0"


def test_a_new_worker_moves_no_session():
    for name in ("agentrt", "affinity", "two-hash", "prefix"):
        made = router(name, workers=4, capacity=100_000)
        homes = {f"p{n}": play(made, ask(f"p{n}"), float(n)) for n in range(60)}
        for number in range(4, 8):
            made.add_worker(f"w{number}", capacity=100_000, seats=8, now=100.0)
        back = {program: play(made, ask(program, 1, prompt=150), 101.0) for program in homes}
        assert back == homes, name


def test_a_drained_worker_moves_only_its_own_sessions():
    for name in ("agentrt", "affinity", "two-hash", "prefix"):
        made = router(name, workers=5, capacity=100_000)
        homes = {f"p{n}": play(made, ask(f"p{n}"), float(n)) for n in range(60)}
        made.drain_worker("w2", 100.0)
        for program, home in homes.items():
            now_at = play(made, ask(program, 1, prompt=150), 101.0)
            assert (now_at == home) is (home != "w2"), name


def test_misuse_is_explained():
    made = router("agentrt", workers=1)
    made.submit(ask("a"), 0.0)
    with pytest.raises(InvalidRequest):
        made.submit(ask("a"), 0.0)
    with pytest.raises(ConfigError):
        made.add_worker("w0", capacity=10, seats=1, now=0.0)
    with pytest.raises(ConfigError):
        made.add_worker("w9", capacity=0, seats=1, now=0.0)
    with pytest.raises(BackendUnavailable):
        Router(make_placement("agentrt")).submit(ask("a"), 0.0)
