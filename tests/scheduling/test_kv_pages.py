"""The page pool, the prefix tree and leases, one behaviour a test."""

from __future__ import annotations

import pytest

from agentrt.engine.kv import PageCache
from agentrt.engine.kv.pages import PagePool
from agentrt.engine.kv.prefix import PrefixTree
from agentrt.errors import InternalError
from agentrt.scheduling.policy import lru_score, program_score


def keys(text: str) -> list[str]:
    """One page per letter; a page's key stands for all that came before it, too."""
    return list(text)


def cache(total: int = 10, score=program_score) -> PageCache:
    return PageCache(total, 16, score)


def fill(pages: PageCache, owner: str, text: str, now: float = 0.0):
    """Lease, publish and release the pages of ``text``."""
    lease = pages.acquire(owner, keys(text), len(text), now)
    assert lease is not None
    pages.publish(lease, keys(text), now)
    pages.release(lease, now)
    pages.check_integrity()


class TestPool:
    def test_hands_out_ascending_pages_and_takes_them_back(self):
        pool = PagePool(4)
        assert pool.allocate(3) == [0, 1, 2]
        pool.release([1])
        assert pool.allocate(2) == [3, 1] or pool.free == 0
        pool.check_integrity()

    def test_zero_pages_are_none(self):
        pool = PagePool(2)
        assert pool.allocate(0) == []
        assert pool.free == 2

    def test_too_many_is_a_bug_of_the_caller(self):
        with pytest.raises(InternalError, match="2 pages asked"):
            PagePool(1).allocate(2)

    def test_double_release_is_caught(self):
        pool = PagePool(2)
        pages = pool.allocate(1)
        pool.release(pages)
        with pytest.raises(InternalError, match="released twice"):
            pool.release(pages)
        with pytest.raises(InternalError):
            pool.release([7])

    def test_integrity_notices_a_forged_free_list(self):
        pool = PagePool(2)
        pool._free.append(0)
        with pytest.raises(InternalError, match="listed free"):
            pool.check_integrity()


class TestSharing:
    def test_second_lease_gets_the_same_pages(self):
        pages = cache()
        fill(pages, "a", "xyz")
        lease = pages.acquire("b", keys("xyq"), 3, 1.0)
        assert lease.shared == 2
        again = pages.acquire("c", keys("xyz"), 3, 1.0)
        assert again.pages[:2] == lease.pages[:2]
        assert again.shared == 3
        pages.check_integrity()

    def test_match_changes_nothing(self):
        pages = cache()
        fill(pages, "a", "xyz")
        before = pages.statistics()
        assert pages.match(keys("xyzw")) == 3
        assert pages.match(keys("xq")) == 1
        assert pages.match(keys("q")) == 0
        assert pages.statistics() == before

    def test_same_content_computed_twice_is_kept_once(self):
        pages = cache()
        first = pages.acquire("a", keys("xyz"), 3, 0.0)
        second = pages.acquire("b", keys("xyz"), 4, 0.0)
        own = list(second.pages)
        pages.publish(first, keys("xyz"), 0.0)
        pages.publish(second, keys("xyz"), 0.0)
        assert second.pages[:3] == first.pages
        assert second.pages[3] == own[3]
        assert pages.statistics().leased == 4
        pages.check_integrity()

    def test_publishing_a_longer_and_a_diverging_text(self):
        pages = cache()
        fill(pages, "a", "abcd")
        one = pages.acquire("b", keys("abce"), 4, 1.0)
        two = pages.acquire("c", keys("abcd"), 6, 1.0)
        pages.publish(one, keys("abce"), 1.0)
        pages.publish(two, keys("abcdfg"), 1.0)
        pages.check_integrity()
        assert pages.match(keys("abce")) == 4
        assert pages.match(keys("abcdfg")) == 6

    def test_publish_below_what_is_shared_is_nothing(self):
        pages = cache()
        lease = pages.acquire("a", [], 3, 0.0)
        pages.publish(lease, keys("ab"), 0.0)
        pages.publish(lease, keys("a"), 0.0)
        assert lease.shared == 2

    def test_publishing_more_than_is_leased_is_a_bug(self):
        pages = cache()
        lease = pages.acquire("a", [], 1, 0.0)
        with pytest.raises(InternalError, match="published"):
            pages.publish(lease, keys("ab"), 0.0)


class TestLeases:
    def test_refuses_what_does_not_fit_and_stays_whole(self):
        pages = cache(4)
        held = pages.acquire("a", [], 3, 0.0)
        assert pages.acquire("b", [], 2, 0.0) is None
        assert pages.acquire("b", [], 1, 0.0, spare=1) is None
        assert not pages.extend(held, 5)
        assert pages.extend(held, 4)
        assert pages.available() == 0
        pages.check_integrity()

    def test_shared_pages_do_not_count_as_available_to_their_own_lease(self):
        pages = cache(4)
        fill(pages, "a", "abcd")
        assert pages.available() == 4
        assert pages.acquire("a", keys("abcd"), 5, 1.0) is None
        lease = pages.acquire("a", keys("ab"), 4, 1.0)
        assert lease.shared == 2
        pages.check_integrity()

    def test_extend_to_less_changes_nothing(self):
        pages = cache(4)
        lease = pages.acquire("a", [], 3, 0.0)
        assert pages.extend(lease, 2)
        assert len(lease.pages) == 3

    def test_trim_keeps_published_pages(self):
        pages = cache(4)
        lease = pages.acquire("a", [], 4, 0.0)
        pages.publish(lease, keys("ab"), 0.0)
        pages.trim(lease)
        assert len(lease.pages) == 2
        assert pages.available() == 2
        pages.check_integrity()

    def test_a_released_lease_is_dead(self):
        pages = cache(4)
        lease = pages.acquire("a", [], 1, 0.0)
        assert "open" in repr(lease)
        pages.release(lease, 0.0)
        assert "closed" in repr(lease)
        for use in (lambda: pages.release(lease, 0.0), lambda: pages.extend(lease, 2)):
            with pytest.raises(InternalError, match="after its release"):
                use()

    def test_integrity_notices_a_lost_lease(self):
        pages = cache(4)
        lease = pages.acquire("a", [], 2, 0.0)
        pages._leases.remove(lease)
        with pytest.raises(InternalError):
            pages.check_integrity()


class TestEviction:
    def test_leased_pages_are_never_evicted(self):
        pages = cache(4)
        fill(pages, "a", "ab")
        lease = pages.acquire("a", keys("ab"), 2, 1.0)
        assert pages.acquire("b", [], 3, 2.0) is None
        other = pages.acquire("b", [], 2, 2.0)
        assert set(other.pages).isdisjoint(lease.pages)

    def test_least_recently_used_goes_first_and_tails_before_heads(self):
        pages = cache(6, lru_score)
        fill(pages, "a", "abc", 0.0)
        fill(pages, "b", "xyz", 1.0)
        pages.acquire("c", [], 2, 2.0)
        assert pages.match(keys("abc")) == 1
        assert pages.match(keys("xyz")) == 3

    def test_ended_contexts_go_before_living_ones(self):
        pages = cache(6)
        fill(pages, "old", "abc", 0.0)
        fill(pages, "ended", "xyz", 1.0)
        pages.end_owner("ended")
        pages.acquire("c", [], 3, 2.0)
        assert pages.match(keys("abc")) == 3
        assert pages.match(keys("xyz")) == 0

    def test_shared_run_of_an_ended_context_stays_while_another_needs_it(self):
        pages = cache(6)
        fill(pages, "a", "abc", 0.0)
        fill(pages, "b", "abd", 1.0)
        pages.end_owner("b")
        pages.acquire("c", [], 3, 2.0)
        assert pages.match(keys("abc")) == 3
        assert pages.match(keys("abd")) == 2

    def test_superseded_state_goes_before_older_living_state(self):
        pages = cache(8)
        fill(pages, "idle", "pqr", 0.0)
        fill(pages, "a", "abc", 1.0)
        fill(pages, "a", "axy", 2.0)
        pages.acquire("c", [], 2, 3.0)
        assert pages.match(keys("pqr")) == 3
        assert pages.match(keys("axy")) == 3
        assert pages.match(keys("abc")) == 1

    def test_emptied_branch_makes_its_parent_evictable(self):
        pages = cache(4)
        fill(pages, "a", "abc", 0.0)
        fill(pages, "b", "abd", 1.0)
        lease = pages.acquire("c", [], 4, 2.0)
        assert lease is not None
        assert pages.statistics().evicted == 4
        pages.check_integrity()

    def test_asking_the_tree_for_more_than_it_has_is_a_bug(self):
        with pytest.raises(InternalError, match="to evict"):
            PrefixTree(lru_score).evict(1)


class TestIntegrityOfTheTree:
    def tree(self) -> PrefixTree:
        tree = PrefixTree(lru_score)
        node, _ = tree.lock([], 0.0)
        tree.insert(node, keys("ab"), [0, 1], 0.0)
        tree.check_integrity()
        return tree

    def test_notices_wrong_counts(self):
        tree = self.tree()
        tree.pages += 1
        with pytest.raises(InternalError, match="a walk finds"):
            tree.check_integrity()

    def test_notices_broken_links_lengths_and_locks(self):
        for harm in (
            lambda node: node.keys.append("z"),
            lambda node: setattr(node, "parent", None),
            lambda node: setattr(node, "locks", -1),
        ):
            tree = self.tree()
            harm(next(tree.nodes()))
            with pytest.raises(InternalError):
                tree.check_integrity()

    def test_the_root_is_never_split(self):
        tree = self.tree()
        with pytest.raises(InternalError, match="root"):
            tree._split(tree.root, 1)

    def test_cache_notices_a_page_in_two_places_and_a_moved_lock(self):
        pages = cache(4)
        lease = pages.acquire("a", [], 2, 0.0)
        pages.publish(lease, keys("ab"), 0.0)
        pages.check_integrity()
        lease.pages.reverse()
        with pytest.raises(InternalError, match="agree"):
            pages.check_integrity()
        lease.pages.reverse()
        lease.node = pages._tree.root
        with pytest.raises(InternalError, match="locks"):
            pages.check_integrity()
