"""HTML made from escaped text: nothing of a run reaches the page but through :func:`escape`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from agentrt.workflows.report_words import STATUS

__all__ = [
    "anchor",
    "details",
    "element",
    "escape",
    "facts",
    "inline",
    "pill",
    "section",
    "table",
    "tag",
    "tone",
]

_CODE = re.compile(r"`([^`\n]+)`")


def escape(text: object) -> str:
    """Return ``text`` safe in an element or a quoted attribute, without control characters."""
    clean = "".join(char if char >= " " or char in "\n\t" else "\ufffd" for char in str(text))
    return html.escape(clean.encode("utf-8", "replace").decode("utf-8"), quote=True)


def inline(text: object) -> str:
    """Return escaped text in which what stands between backticks is set as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def element(name: str, body: str = "", /, **attributes: object) -> str:
    """Return one element. ``body`` is HTML already; attribute values are escaped here.

    A trailing underscore of an attribute's name is dropped; one whose value is None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{body}</{name}>"


def anchor(step: str) -> str:
    """Return the id of a step's part of the page."""
    return "step-" + re.sub(r"[^A-Za-z0-9._-]", "_", step)


def tone(status: str) -> str:
    """Return the style that gives an element the colour of a status."""
    return f"--tone: var(--st-{status if status in STATUS else 'pending'})"


def pill(status: str) -> str:
    """Return a status as a coloured label."""
    return element("span", escape(STATUS.get(status, status)), class_="pill", style=tone(status))


def tag(text: str, kind: str = "") -> str:
    """Return a small label; ``kind`` is code, model, person or nothing."""
    return element("span", escape(text), class_=f"tag {kind}".strip())


def section(name: str, heading: str, lead: str, body: str) -> str:
    """Return one titled section; ``name`` is its anchor. Nothing where ``body`` is empty."""
    if not body:
        return ""
    told = element("p", escape(lead), class_="lead") if lead else ""
    return element("section", element("h2", escape(heading)) + told + body, id=name)


def facts(pairs: Iterable[tuple[str, str]], name: str = "facts") -> str:
    """Return names and values as a definition list; what has no value is left out."""
    rows = [
        element("div", element("dt", escape(key)) + element("dd", escape(value)))
        for key, value in pairs
        if value
    ]
    return element("dl", "".join(rows), class_=name) if rows else ""


def table(names: Sequence[str], rows: Iterable[str], name: str, numeric: Sequence[int] = ()) -> str:
    """Return a table that scrolls by itself; ``rows`` are ``tr`` elements already."""
    heads = "".join(
        element("th", escape(each), scope="col", class_="num" if place in numeric else None)
        for place, each in enumerate(names)
    )
    whole = element("thead", element("tr", heads)) + element("tbody", "".join(rows))
    return element("div", element("table", whole, class_=name), class_="scroll")


def details(summary: str, body: str, *, name: str, opened: bool, id_: str | None = None) -> str:
    """Return a part that folds; ``summary`` and ``body`` are HTML already."""
    inner = element("summary", summary) + body
    return element("details", inner, class_=name, id=id_, open="" if opened else None)
