"""Whose program a name stands for: a sub-agent with a name of its own belongs to its root's. Pure.

Some harnesses give every sub-agent a session of its own, others one session to them all. Counted to
the root, both have one share, one place in the order and one end (llm-d-router #2794).
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Lineage"]

LIMIT = 20_000


class Lineage:
    """Names by tenant, each with its root. What was said first of a name holds: a later statement
    would tear a running conversation apart.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._roots: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._children: dict[tuple[str, str], set[str]] = {}

    def __len__(self) -> int:
        """Return how many names are known."""
        return len(self._roots)

    def root(self, tenant: str, name: str, parent: str | None = None) -> str:
        """Return the root that ``name`` stands for, which may be itself; learn a new name."""
        known = self._roots.get((tenant, name))
        if known is None:
            known = name if parent in (None, name) else self.root(tenant, str(parent))
            self._roots[tenant, name] = known
            self._children.setdefault((tenant, known), set()).add(name)
            if len(self._roots) > self._limit:
                self._forget_name(*next(iter(self._roots)))
        self._roots.move_to_end((tenant, name))
        return known

    def known(self, tenant: str, name: str) -> str | None:
        """Return the root that a name stands for, if it was ever said."""
        return self._roots.get((tenant, name))

    def forget(self, tenant: str, root: str) -> None:
        """A program has ended: its name, and those that stood for it, are free again."""
        for name in list(self._children.get((tenant, root), ())):
            self._forget_name(tenant, name)

    def _forget_name(self, tenant: str, name: str) -> None:
        root = self._roots.pop((tenant, name))
        names = self._children[tenant, root]
        names.remove(name)
        if not names:
            del self._children[tenant, root]
