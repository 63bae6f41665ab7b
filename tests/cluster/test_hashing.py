"""Rendezvous hashing: which keys move when a worker joins or leaves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.cluster.hashing import rendezvous

KEYS = [f"program-{number}" for number in range(2000)]


def names(count: int) -> list[str]:
    return [f"worker-{number}" for number in range(count)]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 16), gone=st.integers(0, 15))
def test_only_the_keys_of_a_leaving_worker_move(count, gone):
    before, leaving = names(count), f"worker-{gone % count}"
    after = [name for name in before if name != leaving]
    for key in KEYS[:300]:
        first = rendezvous(key, before)
        if first != [leaving]:
            assert rendezvous(key, after) == first


@settings(max_examples=10, deadline=None)
@given(count=st.integers(2, 16))
def test_a_joining_worker_takes_its_share_and_no_key_moves_between_others(count):
    before, after = names(count), names(count + 1)
    moved = 0
    for key in KEYS:
        old, new = rendezvous(key, before), rendezvous(key, after)
        if old != new:
            assert new == [f"worker-{count}"]
            moved += 1
    share = 1 / (count + 1)
    # Five standard deviations of a binomial draw around the share.
    assert abs(moved / len(KEYS) - share) < 5 * (share * (1 - share) / len(KEYS)) ** 0.5


def test_keys_are_spread_evenly_and_always_the_same():
    counts = Counter(rendezvous(key, names(8))[0] for key in KEYS)
    assert max(counts.values()) < 1.3 * len(KEYS) / 8
    assert rendezvous("program-7", names(8), 2) == rendezvous("program-7", names(8)[::-1], 2)


def test_two_choices_differ():
    for key in KEYS[:50]:
        one, other = rendezvous(key, names(5), 2)
        assert one != other
