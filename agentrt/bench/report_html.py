"""Small helpers for writing HTML: escaping, elements, numbers as people read them.

Every text that comes from a run passes through :func:`escape` or :func:`script_json`; nothing else
in the report puts foreign text into the page.
"""

from __future__ import annotations

import html
import json
from typing import Any

__all__ = [
    "duration",
    "element",
    "escape",
    "number",
    "percent",
    "ratio",
    "script_json",
    "seconds",
    "shorten",
    "tokens",
]

_SCRIPT_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def escape(text: object) -> str:
    """Return ``text`` safe inside an element or a quoted attribute, without control codes."""
    clean = "".join(ch if ch >= " " or ch in "\n\t" else "\ufffd" for ch in str(text))
    return html.escape(clean.encode("utf-8", "replace").decode("utf-8"), quote=True)


def element(name: str, body: str = "", /, **attributes: object) -> str:
    """Return one element; ``body`` is HTML already, attribute values are escaped here.

    A trailing underscore in an attribute's name is dropped (``class_``), others become dashes; an
    attribute whose value is None is left out.
    """
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    return f"<{name}{''.join(parts)}>{body}</{name}>"


def script_json(value: Any) -> str:
    """Return compact JSON that cannot end the script element it is embedded in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for plain, escaped in _SCRIPT_ESCAPES.items():
        text = text.replace(plain, escaped)
    return text


def number(value: float) -> str:
    """Return three or four significant digits: ``6,353``, ``41.8``, ``0.062``."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"


def percent(value: float) -> str:
    """Return a share of one as a percentage."""
    return f"{value:.1%}" if value < 0.9995 else f"{value:.0%}"


def seconds(value: float) -> str:
    """Return a time in seconds with its unit."""
    return f"{number(value)} s"


def duration(value: float) -> str:
    """Return a span as a person says it: ``850 ms``, ``42 s``, ``12 min 5 s``, ``3.40 h``."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return seconds(value)
    if value >= 7200:
        return f"{number(value / 3600)} h"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def tokens(value: float) -> str:
    """Return a token count in thousands or millions where that is shorter."""
    if abs(value) >= 1e6:
        return f"{number(value / 1e6)} M"
    return f"{number(value / 1e3)} k" if abs(value) >= 1e4 else f"{value:,.0f}"


def ratio(value: float) -> str:
    """Return a factor: ``11.3x`` with a multiplication sign."""
    return f"{value:,.0f}×" if value >= 100 else f"{value:.1f}×" if value >= 2 else f"{value:.2f}×"


def shorten(text: str, limit: int) -> str:
    """Return at most ``limit`` characters of ``text``, marked where it was cut."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
