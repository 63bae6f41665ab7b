"""Work lists: every key of every query exactly once, on the host and on the device alike."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

slices = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), min_size=1, max_size=8)


def arrays(pieces):
    from agentrt.engine.triton.extend import Slices

    start, count = (np.array(side) for side in zip(*pieces, strict=True))
    return Slices(np.cumsum(count) - count, start, count, 100 * np.arange(len(pieces)))


def check_parts(items, merges):
    """Every part is written once, and merged with those of its tile."""
    parts = Counter(part for *_, part, _ in items if part >= 0)
    assert all(count == 1 for count in parts.values())
    merged = [
        first + number for _, _, first, count in merges if count > 1 for number in range(count)
    ]
    assert sorted(merged) == sorted(parts)


@settings(max_examples=80)
@given(
    pieces=slices,
    tile=st.sampled_from([1, 3, 16, 32]),
    window=st.sampled_from([0, 1, 63, 1000]),
    extra=st.integers(1, 70),
    block=st.sampled_from([16, 64]),
    least=st.sampled_from([16, 512]),
)
def test_every_tile_has_all_its_keys_exactly_once(pieces, tile, window, extra, block, least):
    from agentrt.engine.triton.extend import plan_work

    planned = plan_work(
        arrays(pieces), tile=tile, window=window, extra=extra, block=block, least=least
    )
    items, merges = planned.items.tolist(), planned.merges.tolist()
    check_parts(items, merges)
    assert planned.parts == sum(part >= 0 for *_, part, _ in items)
    tiles = sum(-(-count // tile) for _, count in pieces)
    assert len(items) <= tiles + extra
    found: dict[int, list[tuple[int, int]]] = {}
    for row, tokens, position, table, low, high, _, _ in items:
        assert low < high
        own = table // 100
        first = sum(count for _, count in pieces[:own])
        start, count = pieces[own]
        assert (row - first) % tile == 0
        assert tokens == min(tile, count - (row - first))
        assert position == start + row - first
        found.setdefault(row, []).append((low, high))
        end = position + tokens
        assert high <= end
    assert len(found) == tiles
    for row, ranges in found.items():
        [(_, tokens, position)] = {tuple(item[:3]) for item in items if item[0] == row}
        ranges.sort()
        assert ranges[0][0] == (max(0, position - window + 1) if window else 0)
        assert ranges[-1][1] == position + tokens
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
    sizes = [high - low for *_, low, high, _, _ in items]
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 16, 63, 64, 700, 5000]), min_size=1, max_size=7),
    window=st.sampled_from([0, 1, 100]),
    extra=st.sampled_from([1, 5, 40]),
)
def test_the_device_makes_the_list_that_the_host_makes(device, lengths, window, extra):
    from agentrt.engine.triton.decode import plan_decode
    from agentrt.engine.triton.extend import ITEM, MERGE, plan_work

    block, width = 16, 400
    batch = len(lengths)

    def ints(*shape, value):
        return torch.full(shape, value, dtype=torch.int32, device=device)

    slots, items = ints(batch, value=7), ints(batch + extra, ITEM, value=9)
    merges, pages = ints(batch, MERGE, value=9), ints(batch, width, value=0)
    pages += torch.arange(width, dtype=torch.int32, device=device)
    told = torch.tensor(lengths, dtype=torch.int32, device=device)
    plan_decode(
        told, pages, slots, items, merges, extra=extra, block=block, page_size=16, window=window
    )
    assert slots.tolist() == [length - 1 for length in lengths]  # its pages are in order
    used = [item for item in items.tolist() if item[1]]
    assert items.tolist()[: len(used)] == used  # nothing behind them is left from before
    check_parts([[*item[:7], 0] for item in used], merges.tolist())
    there = [row for row, length in enumerate(lengths) if length]
    if not there:
        assert not used
        return
    known = arrays([(lengths[row] - 1, 1) for row in there])
    planned = plan_work(known, tile=1, window=window, extra=extra, block=block, least=block)
    mine = sorted((item[0], *item[4:6], item[6] >= 0) for item in used)
    its = sorted((there[item[0]], *item[4:6], item[6] >= 0) for item in planned.items.tolist())
    assert mine == its
    assert all(item[2] == lengths[item[0]] - 1 for item in used)
    assert all(item[3] == item[0] * width for item in used)


@pytest.mark.parametrize(
    ("kv_heads", "processors", "parts"), [(8, 132, 33), (1, 132, 264), (8, 4, 1), (7, 4, 2)]
)
def test_parts_occupy_every_processor_twice(kv_heads, processors, parts):
    from agentrt.engine.triton.extend import extra_parts

    assert extra_parts(kv_heads, processors) == parts


def test_one_long_sequence_among_short_ones_is_spread_over_all_processors():
    from agentrt.engine.triton.extend import extra_parts, plan_work

    pieces = arrays([(1023, 1)] * 63 + [(32767, 1)])
    planned = plan_work(pieces, tile=1, window=0, extra=extra_parts(8, 132), block=64, least=64)
    longest = max(int(item[5] - item[4]) for item in planned.items)
    assert longest <= 64 + (63 * 1024 + 32768) // 33
    assert len(planned.items) <= 64 + 33
