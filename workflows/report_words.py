"""Words and figures that the Markdown and the HTML report share."""

from __future__ import annotations

from agentrt.workflows.data_handle import Handle
from agentrt.workflows.data_values import Scalar, shown
from agentrt.workflows.report_model import GateNote, QueryNote, StepNote

__all__ = [
    "STATUS",
    "brief",
    "cell",
    "clock",
    "gate_outcome",
    "handle_line",
    "is_assembled",
    "plural",
    "preview_note",
    "size",
    "span",
    "step_timing",
]

STATUS = {
    "pending": "not reached",
    "waiting": "waiting",
    "running": "under way",
    "succeeded": "succeeded",
    "failed": "failed",
    "skipped": "skipped",
    "cancelled": "cancelled",
    "timed_out": "timed out",
    "inconclusive": "inconclusive",
    "lost": "lost",
}
"""How each status is said."""


def span(seconds: float) -> str:
    """Return a length of time as a person says it: ``850 ms``, ``4.2 s``, ``12 min 5 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 119.5:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(started: str) -> str:
    """Return ISO-8601 text to the second, as ``2026-03-01 10:00:00 UTC``."""
    return f"{started[:10]} {started[11:19]} UTC" if len(started) >= 19 else started


def size(count: int) -> str:
    """Return bytes in the unit that gives a short number."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun: ``1 query``, ``3 queries``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def cell(value: Scalar) -> str:
    """Return a cell of a table as text: a number shortened, a long text cut."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return shown(value, 120)


def handle_line(handle: Handle) -> str:
    """Return where the data of a finding is: its handle, size and digest."""
    more = ", truncated" if handle.truncated else ""
    rows = plural(handle.rows, "row")
    return f"{handle.id}: {rows}{more}, sha256 {handle.digest[:16]}"


def preview_note(note: QueryNote) -> str:
    """Return which rows a preview shows, or nothing where it shows all of them."""
    if note.handle is None or len(note.rows) >= note.handle.rows:
        return ""
    which = "first 2 and the last" if len(note.rows) == 3 else f"first {len(note.rows)}"
    return f"the {which} of {note.handle.rows:,} rows"


def step_timing(step: StepNote) -> str:
    """Return how long a step took and in how many attempts, or nothing if it never ran."""
    if not step.ran:
        return ""
    tries = f", {len(step.attempts)} attempts" if len(step.attempts) > 1 else ""
    return span(step.seconds) + tries


def gate_outcome(gate: GateNote) -> str:
    """Return what a gate was answered, by whom and after how long."""
    if gate.answered is None:
        return f"open; its default is {gate.default}"
    who = "by default since nobody answered" if gate.by == "default" else f"by a {gate.by}"
    return f"{gate.answer}, {who}, after {span(gate.answered - gate.opened)}"


def is_assembled(step: StepNote) -> bool:
    """Whether a step's findings are just the summaries of its data, which are shown as tables."""
    return any(query.handle and query.handle.id in step.findings for query in step.queries)


def brief(step: StepNote, limit: int = 240) -> str:
    """Return what a step found, on one line: its conclusion, its prose, or what its data holds."""
    text = step.conclusion or ("" if is_assembled(step) else step.findings)
    parts = [text] if text else []
    parts += [] if text else [_measured(query) for query in step.queries if query.handle]
    parts += [] if text else [command.output for command in step.commands if command.output]
    line = " ".join("; ".join(parts).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _measured(query: QueryNote) -> str:
    if query.handle is None:
        return query.name
    spans = [
        f"{column.name} {cell(column.low)} to {cell(column.high)}"
        for column in query.handle.columns
        if column.type in ("integer", "number") and column.low is not None and column.name != "line"
    ]
    found = [plural(query.handle.rows, "row"), *spans[:2]]
    return f"{query.name}: {', '.join(found)}"
