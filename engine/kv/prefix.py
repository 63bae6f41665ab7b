"""The prefix tree: which token pages are cached, shared and evictable.

A radix tree whose edges are runs of pages. Keys come as lists or as arrays, all of a tree alike.
A node's key list and page list have the same length, so
splits happen at page boundaries only. ``locks`` counts the leases that end in the node's subtree:
zero means that the whole subtree may be evicted, from its leaves' tails upwards.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, MutableSequence, Sequence
from typing import Any, NamedTuple, TypeAlias

from agentrt.errors import InternalError

__all__ = ["Evicted", "EvictionScore", "Match", "Node", "PrefixTree", "keys_to"]

EvictionScore: TypeAlias = Callable[["Node"], Any]
"""Gives a run of cached pages a sortable score; the lowest goes first."""


Evicted: TypeAlias = Callable[[Sequence[Hashable], Sequence[int]], None]
"""Told what is about to go: keys from the first page on, and the pages of the last of them."""


class Node:
    """A run of cached pages. ``owners`` are the contexts whose latest state passes through it."""

    __slots__ = ("children", "keys", "last_used", "locks", "owners", "pages", "parent", "stamp")

    def __init__(
        self, keys: MutableSequence[Hashable], pages: list[int], parent: Node | None
    ) -> None:
        self.keys = keys
        self.pages = pages
        self.parent = parent
        self.children: dict[Hashable, Node] = {}
        self.locks = 0
        self.owners: set[str] = set()
        self.last_used = 0.0
        self.stamp = 0

    @property
    def owned(self) -> bool:
        """Whether some living context's latest state needs this run."""
        return bool(self.owners)

    @property
    def size(self) -> int:
        """Its pages."""
        return len(self.pages)

    def path(self) -> Iterator[Node]:
        """Yield this node and its ancestors, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class Match(NamedTuple):
    """The deepest node that agrees with some keys, and how far.

    ``pages`` agree in all; ``inside`` of them lie in ``node`` itself.
    """

    node: Node
    pages: int
    inside: int


def _agreeing(left: Sequence[Hashable], keys: Sequence[Hashable], start: int) -> int:
    """Return how many leading entries of ``left`` equal ``keys[start:]``."""
    length = min(len(left), len(keys) - start)
    if list(left[:length]) == list(keys[start : start + length]):
        return length
    return next(i for i in range(length) if left[i] != keys[start + i])


def _is_candidate(stamp: int, node: Node) -> bool:
    """Whether an entry of the eviction heap is the newest of a run that can go."""
    return stamp == node.stamp and not node.locks and not node.children and bool(node.pages)


def keys_to(node: Node) -> list[Hashable]:
    """Return the keys of the whole path that ends with ``node``."""
    return [key for part in reversed(list(node.path())) for key in part.keys]


class PrefixTree:
    """Cached runs by content. Pages come in by ``insert`` and leave by ``evict``.

    A run is scored when it becomes evictable; with ``rescore`` all that can go are scored anew at
    each eviction. ``evicted`` is told of pages before they are given to anybody else.
    """

    def __init__(
        self,
        score: EvictionScore,
        *,
        rescore: bool = False,
        evicted: Evicted | None = None,
    ) -> None:
        self._evicted = evicted
        self.root = Node([], [], None)
        self.pages = 0
        self.locked_pages = 0
        self._score = score
        self._rescore = rescore
        self._heap: list[tuple[Any, int, int, Node]] = []
        self._pushes = 0
        self._tails: dict[str, Node] = {}

    @property
    def evictable(self) -> int:
        """How many cached pages no lease protects."""
        return self.pages - self.locked_pages

    def match(self, keys: Sequence[Hashable]) -> Match:
        """Find the longest cached prefix of ``keys``. Changes nothing."""
        node, count = self.root, 0
        while count < len(keys):
            child = node.children.get(keys[count])
            if child is None:
                break
            inside = size = len(child.keys)
            if keys[count : count + size] != child.keys:
                inside = _agreeing(child.keys, keys, count)
            node, count = child, count + inside
            if inside < size:
                return Match(node, count, inside)
        return Match(node, count, len(node.keys))

    def lock(self, keys: Sequence[Hashable], now: float) -> tuple[Node, list[int]]:
        """Lock the longest cached prefix of ``keys``; return its end node and its pages."""
        found = self.match(keys)
        node = self._split(found.node, found.inside) if found.pages else self.root
        pages: list[int] = []
        for part in reversed(list(node.path())):
            pages += part.pages
        self._add_lock(node, now)
        return node, pages

    def _add_lock(self, node: Node, now: float) -> None:
        for part in node.path():
            if part.locks == 0:
                self.locked_pages += len(part.pages)
            part.locks += 1
            part.last_used = now

    def unlock(self, node: Node, now: float) -> None:
        """Undo one ``lock`` that ended at ``node``."""
        for part in node.path():
            part.locks -= 1
            part.last_used = now
            if part.locks == 0:
                self.locked_pages -= len(part.pages)
                self._offer(part)

    def insert(
        self, node: Node, keys: Sequence[Hashable], pages: Sequence[int], now: float
    ) -> tuple[Node, list[int], list[int]]:
        """Publish ``pages`` under ``keys`` below ``node``, which the caller has locked.

        The caller's lock moves to the returned end node. Also returned: the pages that now stand
        for ``keys`` (another holder's where the same content was there already), and the caller's
        own pages that those made superfluous.
        """
        kept: list[int] = []
        spare: list[int] = []
        end = node
        while len(kept) < len(keys):
            child = end.children.get(keys[len(kept)])
            if child is None:
                break
            inside = _agreeing(child.keys, keys, len(kept))
            spare += pages[len(kept) : len(kept) + inside]
            kept += child.pages[:inside]
            end = self._split(child, inside)
        rest = len(kept)
        if end is not node:
            self._move_lock(node, end, now)
        if rest < len(keys):
            end = self._grow(end, keys[rest:], list(pages[rest:]), now)
            kept += pages[rest:]
        return end, kept, spare

    def _move_lock(self, node: Node, end: Node, now: float) -> None:
        """Move one lock from ``node`` down to its descendant ``end``."""
        for part in end.path():
            if part is node:
                break
            if part.locks == 0:
                self.locked_pages += len(part.pages)
            part.locks += 1
            part.last_used = now

    def _grow(self, end: Node, keys: Any, pages: list[int], now: float) -> Node:
        """Add a run below ``end``: in place where ``end`` is a leaf only the caller holds."""
        self.pages += len(pages)
        self.locked_pages += len(pages)
        if end is not self.root and not end.children and end.locks == 1:
            end.keys += keys
            end.pages += pages
            end.last_used = now
            return end
        leaf = Node(keys, pages, end)
        leaf.locks, leaf.last_used = 1, now
        end.children[keys[0]] = leaf
        return leaf

    def _split(self, node: Node, inside: int) -> Node:
        """Cut ``node`` after its first ``inside`` pages; return the node that ends there.

        ``node`` itself stays the lower part, so that leases and tails that end at it stay right.
        """
        if inside == len(node.keys):
            return node
        parent = node.parent
        if parent is None:
            raise InternalError("The root of the prefix tree cannot be split.")
        upper = Node(node.keys[:inside], node.pages[:inside], parent)
        upper.locks, upper.last_used = node.locks, node.last_used
        upper.owners = set(node.owners)
        upper.children[node.keys[inside]] = node
        parent.children[upper.keys[0]] = upper
        node.keys, node.pages, node.parent = node.keys[inside:], node.pages[inside:], upper
        return upper

    # -- ownership: which runs are some living context's latest state -----------------------------

    def claim(self, owner: str, node: Node) -> None:
        """Make the path to ``node`` the latest state of ``owner``; what it left is superseded."""
        old = self._tails.get(owner)
        if old is node:
            return
        fresh = list(node.path())
        if old is not None:
            self._disown(owner, old, keep=set(map(id, fresh)))
        for part in fresh:
            part.owners.add(owner)
        self._tails[owner] = node

    def disown(self, owner: str) -> None:
        """Forget a context: its runs belong to nobody unless another context shares them."""
        tail = self._tails.pop(owner, None)
        if tail is not None:
            self._disown(owner, tail, keep=set())

    def _disown(self, owner: str, tail: Node, keep: set[int]) -> None:
        for part in tail.path():
            if id(part) not in keep and owner in part.owners:
                part.owners.discard(owner)
                self._offer(part)

    # -- eviction ---------------------------------------------------------------------------------

    def _offer(self, node: Node) -> None:
        """Enter ``node`` as a candidate for eviction if it is one; older entries become stale."""
        if node.locks or node.children or node.parent is None or not node.pages:
            return
        node.stamp += 1
        self._pushes += 1
        heapq.heappush(self._heap, (self._score(node), self._pushes, node.stamp, node))

    def evict(self, count: int) -> list[int]:
        """Take ``count`` pages out of the tree, lowest score first, tails first.

        Raises:
            InternalError: fewer are evictable; callers ask ``evictable`` first.
        """
        freed: list[int] = []
        if self._rescore:
            self._score_anew()
        while len(freed) < count:
            if not self._heap:
                raise InternalError(f"{count} pages to evict, but only {len(freed)} were found.")
            _, _, stamp, node = heapq.heappop(self._heap)
            if _is_candidate(stamp, node):
                freed += self._cut(node, count - len(freed))
        return freed

    def _score_anew(self) -> None:
        candidates = [entry for entry in self._heap if _is_candidate(entry[2], entry[3])]
        self._heap = [(self._score(node), at, stamp, node) for _, at, stamp, node in candidates]
        heapq.heapify(self._heap)

    def _cut(self, node: Node, count: int) -> list[int]:
        """Take up to ``count`` pages off the tail of a leaf; remove it when it is empty."""
        take = min(count, len(node.pages))
        pages = node.pages[-take:]
        if self._evicted is not None:
            self._evicted(keys_to(node), pages)
        first = node.keys[0]
        del node.pages[-take:], node.keys[-take:]
        self.pages -= take
        if node.pages:
            self._offer(node)
            return pages
        parent = node.parent
        if parent is not None:
            del parent.children[first]
            for owner in node.owners:
                if self._tails.get(owner) is node:
                    self._tails[owner] = parent
            self._offer(parent)
            self._join(parent)
        return pages

    def _join(self, node: Node) -> None:
        """Make one run of ``node`` and its only child where nothing tells them apart.

        Equal locks and owners mean that no lease and no context's latest state ends between them.
        Every turn of a program may split a run, so that paths would grow with the turns.
        """
        while node.parent is not None and len(node.children) == 1:
            (child,) = node.children.values()
            alike = node.locks == child.locks and node.owners == child.owners
            # What is locked is used anew when it is unlocked: its time so far does not matter.
            if not alike or (node.locks == 0 and node.last_used != child.last_used):
                return
            child.keys[:0], child.pages[:0] = node.keys, node.pages
            child.parent = node.parent
            node.parent.children[node.keys[0]] = child
            node = node.parent

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if counts, links or locks disagree."""
        total = locked = 0
        for node in self.nodes():
            self._check_node(node)
            total += len(node.pages)
            locked += len(node.pages) if node.locks else 0
        if (total, locked) != (self.pages, self.locked_pages):
            raise InternalError(
                f"Tree counts {self.pages} pages, {self.locked_pages} locked; "
                f"a walk finds {total}, {locked}."
            )

    def _check_node(self, node: Node) -> None:
        if not node.keys or len(node.keys) != len(node.pages):
            raise InternalError(f"A run has {len(node.keys)} keys and {len(node.pages)} pages.")
        if node.parent is None or node.parent.children.get(node.keys[0]) is not node:
            raise InternalError("A run is not linked from its parent.")
        if node.locks < sum(child.locks for child in node.children.values()):
            raise InternalError("A run has fewer locks than its children together.")
