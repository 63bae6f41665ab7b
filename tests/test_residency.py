"""Who leaves device memory: never more than must, idle models first, by last use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import InternalError
from agentrt.residency import Standing, make_room

models = st.lists(
    st.builds(Standing, st.uuids().map(str), st.integers(1, 50), st.booleans(), st.integers(0, 9)),
    max_size=6,
    unique_by=lambda one: one.name,
)


@given(models, st.integers(1, 300), st.integers(1, 200))
def test_room_is_made_and_nobody_leaves_in_vain(loaded, spare, needed):
    capacity = sum(one.bytes for one in loaded) + spare
    if needed > capacity:
        with pytest.raises(InternalError, match="was planned into"):
            make_room(needed, loaded, capacity)
        return
    chosen = make_room(needed, loaded, capacity)
    gone = {one.name: one for one in loaded if one.name in chosen}
    free = spare + sum(one.bytes for one in gone.values())
    assert free >= needed
    assert all(free - one.bytes < needed for one in gone.values())
    if len(chosen) == 1 and not gone[chosen[0]].busy:
        (left,) = gone.values()
        earlier = [one for one in loaded if not one.busy and one.used < left.used]
        assert all(spare + one.bytes < needed for one in earlier)


def test_idle_ones_go_before_busy_ones_that_were_used_longer_ago():
    loaded = [Standing("busy", 10, True, 1), Standing("new", 10, False, 3)]
    loaded.append(Standing("old", 10, False, 2))
    assert make_room(10, loaded, 30) == ["old"]
    assert make_room(20, loaded, 30) == ["old", "new"]
    assert make_room(30, loaded, 30) == ["old", "new", "busy"]
