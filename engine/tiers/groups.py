"""Which pages can be copied together: few copies of many pages rather than many of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrt.errors import InternalError

__all__ = ["CopyGroup", "copy_groups"]


@dataclass(frozen=True, slots=True)
class CopyGroup:
    """Host pages ``[host, host + len(pages))`` and the pool pages that go with them, in order."""

    host: int
    pages: tuple[int, ...]

    @property
    def straight(self) -> bool:
        """Whether the pool pages, too, follow each other."""
        return self.pages[-1] - self.pages[0] == len(self.pages) - 1


def copy_groups(
    pages: Sequence[int], host_pages: Sequence[int], *, most: int, straight: bool
) -> list[CopyGroup]:
    """Sort pairs of pages by host page and join those that follow each other there.

    Args:
        pages: pool pages, all different.
        host_pages: the host page of each.
        most: pages of a group at most.
        straight: the pool pages of a group must follow each other as well.

    Raises:
        InternalError: the lists differ in length.
    """
    if len(pages) != len(host_pages):
        raise InternalError(f"{len(pages)} pool pages are to go with {len(host_pages)} host pages.")
    groups: list[CopyGroup] = []
    run: list[int] = []
    first = 0
    for host, page in sorted(zip(host_pages, pages, strict=True)):
        follows = host == first + len(run) and len(run) < most
        if run and not (follows and (not straight or page == run[-1] + 1)):
            groups.append(CopyGroup(first, tuple(run)))
            run = []
        if not run:
            first = host
        run.append(page)
    if run:
        groups.append(CopyGroup(first, tuple(run)))
    return groups
