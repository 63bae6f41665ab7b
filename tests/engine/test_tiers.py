"""The host tier: copies in groups, beside the steps, and never seen half-done."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.tiers import CopyDone, copy_groups
from agentrt.engine.tiers.host import HostTier, page_bytes
from agentrt.errors import InternalError
from agentrt.scheduling.plan import Transfer

PAIRS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    unique_by=(lambda pair: pair[0], lambda pair: pair[1]),
    max_size=30,
)


class TestGroups:
    @settings(deadline=None)
    @given(PAIRS, st.integers(1, 8), st.booleans())
    def test_every_pair_is_copied_once_and_groups_could_not_be_larger(self, pairs, most, straight):
        pages, hosts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        groups = copy_groups(pages, hosts, most=most, straight=straight)
        copied = [
            (page, group.host + at) for group in groups for at, page in enumerate(group.pages)
        ]
        assert sorted(copied) == sorted(pairs)
        for group in groups:
            assert len(group.pages) <= most
            assert group.straight or not straight
        for left, right in pairwise(groups):
            joined = right.host == left.host + len(left.pages) and len(left.pages) < most
            assert not (joined and not straight)
            assert not (joined and right.pages[0] == left.pages[-1] + 1)

    def test_a_run_is_one_copy(self):
        (group,) = copy_groups([7, 5, 6], [2, 0, 1], most=100, straight=True)
        assert (group.host, group.pages, group.straight) == (0, (5, 6, 7), True)

    def test_lists_of_different_length_are_refused(self):
        with pytest.raises(InternalError, match="2 pool pages"):
            copy_groups([1, 2], [0], most=1, straight=False)


def pool_tensors(pages, dtype=torch.float32):
    values = torch.arange(3 * 2 * pages * 2 * 4 * 8, dtype=torch.float32)
    kv = values.reshape(3, 2, pages, 2, 4, 8).to(dtype)
    return [kv, kv[..., 0].clone()]


def settled(tier, count):
    """Wait for ``count`` transfers to be over."""
    done, failed = [], []
    deadline = time.monotonic() + 20
    while len(done) + len(failed) < count:
        over = tier.take_over()
        done += over.done
        failed += over.failed
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return done, failed


class TestHostTier:
    @settings(max_examples=30, deadline=None)
    @given(
        st.permutations(range(12)),
        st.permutations(range(10)),
        st.integers(1, 10),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    )
    def test_pages_come_back_as_they_went(self, pages, hosts, count, dtype):
        pool = pool_tensors(12, dtype)
        before = [part.clone() for part in pool]
        tier = HostTier(pool, 10)
        tier.start(lambda: None)
        gone, there = tuple(pages[:count]), tuple(hosts[:count])
        tier.begin([Transfer(1, "store", gone, there)])
        assert settled(tier, 1) == ([1], [])
        for part in pool:
            part[:, :, list(gone)] = 0
        tier.begin([Transfer(2, "load", gone, there)])
        assert settled(tier, 1) == ([2], [])
        tier.close()
        for part, old in zip(pool, before, strict=True):
            assert torch.equal(part, old)
        figures = tier.statistics()
        moved = count * page_bytes(pool)
        assert (figures.stored_pages, figures.loaded_pages) == (count, count)
        assert (figures.stored_bytes, figures.loaded_bytes) == (moved, moved)
        assert (figures.transfers, figures.failed) == (2, 0)

    def test_a_run_of_pages_is_one_copy(self):
        tier = HostTier(pool_tensors(64), 64)
        tier.start(lambda: None)
        tier.begin([Transfer(1, "store", tuple(range(64)), tuple(range(64)))])
        settled(tier, 1)
        tier.close()
        assert tier.statistics().copies == 1

    def test_a_copy_that_raises_is_told_of_and_the_next_goes_on(self, caplog):
        tier = HostTier(pool_tensors(4), 4)
        woken = threading.Semaphore(0)
        tier.start(woken.release)
        tier.begin([Transfer(1, "load", (0, 1), (0,)), Transfer(2, "store", (0,), (0,))])
        assert settled(tier, 2) == ([2], [1])
        assert woken.acquire(timeout=5)
        assert woken.acquire(timeout=5)
        tier.close()
        assert tier.statistics().failed == 1
        assert "Transfer 1 (load) failed" in caplog.text

    def test_beginning_does_not_wait_and_closing_drops_what_has_not_begun(self):
        entered, go_on = threading.Event(), threading.Event()

        def pace(transfer):
            entered.set()
            assert go_on.wait(20)

        tier = HostTier(pool_tensors(4), 4, pace=pace)
        tier.start(lambda: None)
        tier.begin([Transfer(1, "store", (0,), (0,)), Transfer(2, "store", (1,), (1,))])
        assert entered.wait(20)
        assert tier.take_over() == CopyDone()
        closer = threading.Thread(target=tier.close)
        closer.start()
        while not tier._closing:
            time.sleep(0.001)
        go_on.set()
        closer.join(20)
        assert not closer.is_alive()
        assert tier.take_over() == CopyDone(done=(1,))
        tier.close()

    def test_a_halt_waits_for_the_copy_under_way_and_tells_of_none(self):
        entered, go_on = threading.Event(), threading.Event()

        def pace(transfer):
            entered.set()
            assert go_on.wait(20)

        pools = [pool_tensors(4), pool_tensors(4)]
        pools[1][0].zero_()
        tier = HostTier(pools[0], 4, pace=pace, renew=lambda: pools[1])
        tier.start(lambda: None)
        tier.begin([Transfer(1, "store", (0,), (0,)), Transfer(2, "store", (1,), (1,))])
        assert entered.wait(20)
        tier.halt()
        with pytest.raises(InternalError, match="halted"):
            tier.begin([Transfer(3, "store", (0,), (0,))])
        tier.resume()
        go_on.set()
        tier.begin([Transfer(4, "store", (2,), (2,))])
        assert settled(tier, 1) == ([4], [])
        tier.close()
        # Of the old pool nothing came; of the new one, which is zeros, what was asked for.
        assert not tier.host[0].any()
        assert tier.statistics().stored_pages == 1
