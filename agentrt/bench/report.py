"""The report: one HTML file that opens from disk and asks the network for nothing.

Figures and plots are written into the page as tables and SVG; only the time line needs the script.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from agentrt.bench.records import RunRecord
from agentrt.bench.report_cards import plots_section
from agentrt.bench.report_html import element, escape
from agentrt.bench.report_page import Page, comparison_page, run_page
from agentrt.bench.report_programs import programs_section
from agentrt.bench.report_sections import (
    figures_section,
    settings_section,
    stat_cards,
)
from agentrt.bench.report_timeline import timeline_data, timeline_section
from agentrt.bench.results import Comparison
from agentrt.errors import ConfigError

__all__ = [
    "command_line",
    "document_head",
    "render_document",
    "render_page",
    "write_page",
    "write_report",
    "write_run_report",
]

_STYLES = ("page.css", "plots.css")
_SCRIPTS = ("decode.js", "view.js", "rows.js", "lanes.js", "tip.js", "main.js")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The page's own promise to the browser: no request leaves it."""

_EARLY = (
    "document.documentElement.classList.add('js');"
    "addEventListener('error',e=>{document.documentElement.dataset.error=e.message});"
)

_MARK = (
    '<svg viewBox="0 0 20 20" aria-hidden="true">'
    '<path class="queue" d="M1 3h5v3.4h-5z"/><path class="prefill" d="M7 3h12v3.4h-12z"/>'
    '<path class="decode" d="M1 8.3h11v3.4h-11z"/><path class="tool" d="M13 8.3h6v3.4h-6z"/>'
    '<path class="prefill" d="M5 13.6h14v3.4h-14z"/></svg>'
)


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report of a comparison of policies to ``path``, replacing it in one step.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_page(render_page(comparison_page(comparison)), path)


def write_run_report(run: RunRecord, path: Path, *, title: str, headline: str) -> None:
    """Write the report of one run to ``path``, replacing it in one step.

    ``run.settings`` may hold ``command`` and ``machine``; they are shown apart from the settings.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_page(render_page(run_page(run, title=title, headline=headline)), path)


def render_page(page: Page) -> str:
    """Return the whole HTML document of ``page``; the same page gives the same text."""
    data, kept = timeline_data(page)
    return render_document(page, _sections(page, timeline_section(page, kept)), data)


def render_document(page: Page, sections: list[tuple[str, str]], data: str = "") -> str:
    """Return a document with the page's head and ``sections``, (name, HTML) each, below it.

    ``data`` are the script elements that hold what the time line draws, if there is one.
    """
    main = element("main", _hero(page) + "".join(body for _, body in sections), class_="wrap")
    foot = element("footer", escape(_footer(page)), class_="wrap")
    tip = '<div class="tip" id="tip" role="status" hidden></div>'
    body = _bar([name for name, _ in sections]) + main + foot + tip + data + _script()
    head = document_head(page.title)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _sections(page: Page, timeline: str) -> list[tuple[str, str]]:
    """Return (name, HTML) of the parts that have content; a run shows its programs first."""
    plots, programs = ("Plots", plots_section(page)), ("Programs", programs_section(page))
    line, figures = ("Time line", timeline), ("Figures", figures_section(page))
    settings = ("Settings", settings_section(page))
    if page.is_comparison:
        order = [plots, line, figures, programs, settings]
    else:
        order = [line, programs, plots, figures, settings]
    return [(name, body) for name, body in order if body]


def document_head(title: str) -> str:
    """Return the content of a page's head: its title, style, and the promise to the browser."""
    style = "\n".join(_asset(name) for name in _STYLES)
    return (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · agentrt report</title>"
        f"<script>{_EARLY}</script><style>{style}</style>"
    )


def _script() -> str:
    source = "\n".join(_asset(name) for name in _SCRIPTS)
    return f'<script>(() => {{\n"use strict";\n{source}}})();</script>'


def _asset(name: str) -> str:
    return files("agentrt.bench").joinpath("assets", name).read_text(encoding="utf-8")


def _bar(names: list[str]) -> str:
    links = "".join(
        element("a", escape(name), href=f"#{name.lower().replace(' ', '')}") for name in names
    )
    theme = '<button type="button" data-part="theme">Light / dark</button>'
    brand = element("div", f"{_MARK}agentrt", class_="brand")
    inner = brand + element("nav", links, aria_label="Sections") + theme
    return element("div", element("div", inner, class_="wrap"), class_="bar")


def _hero(page: Page) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.facts
    )
    parts = [
        element("p", escape(page.kicker), class_="kicker"),
        element("h1", escape(page.title)),
        element("p", escape(page.headline), class_="headline"),
        element("p", escape(page.warning), class_="banner", role="alert") if page.warning else "",
        element("dl", facts, class_="facts"),
        command_line(page.command),
        stat_cards(page),
    ]
    return element("header", "".join(parts), class_="hero")


def command_line(command: str) -> str:
    """Return the command that made a page, ready to be copied; nothing if there is none."""
    if not command:
        return ""
    copy = '<button type="button" data-part="copy" hidden>Copy</button>'
    return element("div", f"<code>{escape(command)}</code>{copy}", class_="command")


def _footer(page: Page) -> str:
    made = f" on {page.created}" if page.created else ""
    machine = ", ".join(f"{name} {value}" for name, value in page.machine.items())
    return f"Made by agentrt{made}. {machine}".strip()


def write_page(text: str, path: Path) -> None:
    """Write a report to ``path``, replacing it in one step: no reader opens half of one.

    Raises:
        ConfigError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(
            f"The report {path} cannot be written: {error}.",
            remedy="Name an existing directory that can be written, with room on its disk.",
        ) from error
