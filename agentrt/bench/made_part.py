"""Tables of text, and the part of a document that a command makes anew. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Marks", "aligned", "table"]


@dataclass(frozen=True, slots=True)
class Marks:
    """The lines around what ``command`` makes."""

    command: str

    @property
    def begin(self) -> str:
        """Return the line before it."""
        return f"<!-- made by {self.command}: do not edit below -->"

    @property
    def end(self) -> str:
        """Return the line after it."""
        return f"<!-- end of what {self.command} makes -->"

    def renew(self, text: str, made: str) -> str:
        """Return a document with this part made anew.

        Raises:
            ValueError: the document does not have the two marks.
        """
        before, rest = text.split(self.begin)
        _, after = rest.split(self.end)
        return f"{before}{self.begin}\n\n{made}\n{self.end}{after}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table; all columns but the first are aligned right."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *body)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of columns.

    Numbers are aligned right: all but the first column, and a last one without a head.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = {0, *(index for index, head in enumerate(rows[0]) if not head)}
    return [
        "  ".join(
            cell.ljust(width) if index in words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
