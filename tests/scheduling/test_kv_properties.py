"""Random use of the page cache against a plain model of what must be cached and held."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentrt.engine.kv import Lease, PageCache
from agentrt.scheduling.policy import program_score

OWNERS = ["a", "b", "c"]
texts = st.text("xy", min_size=0, max_size=6)


class CacheMachine(RuleBasedStateMachine):
    """Acquire, extend, publish, trim, release, end owners in any order; integrity after each."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(12, 4, program_score)
        self.held: list[tuple[Lease, list[str]]] = []
        self.now = 0.0
        self.serial = 0

    def _keys(self, text: str) -> list[str]:
        # A key stands for the whole prefix, so equal letters at another place differ.
        return [text[: i + 1] for i in range(len(text))]

    @rule(
        owner=st.sampled_from(OWNERS), text=texts, extra=st.integers(0, 4), spare=st.integers(0, 2)
    )
    def acquire(self, owner: str, text: str, extra: int, spare: int) -> None:
        self.now += 1
        keys = self._keys(text)
        before = self.cache.available()
        hit = self.cache.match(keys)
        lease = self.cache.acquire(owner, keys, len(keys) + extra, self.now, spare=spare)
        if lease is None:
            assert len(keys) + extra - hit + spare > before - hit
            return
        assert lease.shared == hit
        assert len(lease.pages) == len(keys) + extra
        self.held.append((lease, keys))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        lease, keys = data.draw(st.sampled_from(self.held))
        count = data.draw(st.integers(0, len(lease.pages)))
        grown = keys + [f"{keys[-1] if keys else ''}+{i}" for i in range(count - len(keys))]
        self.cache.publish(lease, grown[:count], self.now)
        assert self.cache.match(grown[: lease.shared]) == lease.shared
        if len(grown) > len(keys):
            keys.extend(grown[len(keys) :])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), pages=st.integers(0, 13))
    def extend(self, data: st.DataObject, pages: int) -> None:
        lease, _ = data.draw(st.sampled_from(self.held))
        before, room = list(lease.pages), self.cache.available()
        grew = self.cache.extend(lease, pages)
        assert grew == (pages - len(before) <= room)
        assert lease.pages[: len(before)] == before

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        lease, _ = data.draw(st.sampled_from(self.held))
        self.cache.trim(lease)
        assert len(lease.pages) == lease.shared

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.now += 1
        lease, keys = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        shared = lease.shared
        self.cache.release(lease, self.now)
        assert self.cache.match(keys[:shared]) == shared

    @rule(owner=st.sampled_from(OWNERS))
    def end_owner(self, owner: str) -> None:
        self.cache.end_owner(owner)

    @invariant()
    def whole(self) -> None:
        self.cache.check_integrity()
        held = {page for lease, _ in self.held for page in lease.pages}
        assert self.cache.statistics().leased == len(held)
        assert self.cache.available() == 12 - len(held)

    def teardown(self) -> None:
        for lease, _ in self.held:
            self.cache.release(lease, self.now)
        self.cache.check_integrity()
        assert self.cache.available() == 12


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
