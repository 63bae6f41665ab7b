"""Reports of what is found over many runs: plots and tables, without any one run's time line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrt.bench.report import command_line, document_head, write_page
from agentrt.bench.report_cards import plot_card
from agentrt.bench.report_html import element, escape
from agentrt.bench.report_sections import section

__all__ = ["PlainPage", "plots", "render_plain", "table", "write_plain"]


@dataclass(frozen=True, slots=True)
class PlainPage:
    """``sections`` are HTML, from :func:`plots` and :func:`table`."""

    kicker: str
    title: str
    headline: str
    sections: Sequence[str]
    command: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""


def plots(cards: Sequence[tuple[str, str, str]]) -> str:
    """Return a section of plots: each has a title, a lead and its SVG."""
    body = element("div", "".join(plot_card(*card) for card in cards), class_="grid")
    return section("plots", "Plots", "", body)


def table(name: str, heading: str, lead: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a section with a table; the first row is its head, the first column names rows."""
    head = "".join(
        element("th", escape(cell), scope="col", class_="num" if at else None)
        for at, cell in enumerate(rows[0])
    )
    body = "".join(element("tr", _cells(row)) for row in rows[1:])
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return section(
        name,
        heading,
        lead,
        element("div", element("table", inner, class_="figures"), class_="scroll"),
    )


def _cells(row: Sequence[str]) -> str:
    first = element("th", escape(row[0]), scope="row")
    return first + "".join(element("td", escape(cell), class_="num") for cell in row[1:])


def render_plain(page: PlainPage) -> str:
    """Return the whole HTML document."""
    hero = element(
        "header",
        element("p", escape(page.kicker), class_="kicker")
        + element("h1", escape(page.title))
        + element("p", escape(page.headline), class_="headline")
        + command_line(page.command),
        class_="hero",
    )
    main = element("main", hero + "".join(page.sections), class_="wrap")
    machine = ", ".join(f"{name} {value}" for name, value in page.machine.items())
    made = f"Made by agentrt{f' on {page.created}' if page.created else ''}. {machine}"
    foot = element("footer", escape(made.strip()), class_="wrap")
    return (
        f'<!doctype html>\n<html lang="en"><head>{document_head(page.title)}</head>\n'
        f"<body>{main}{foot}</body></html>\n"
    )


def write_plain(page: PlainPage, path: Path) -> None:
    """Write the page to ``path``.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_page(render_plain(page), path)
