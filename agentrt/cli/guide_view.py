"""What a guide run looks like while it goes on: a line per event, and a spinner on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:
    from agentrt.workflows.events import Event
    from agentrt.workflows.person import Question

__all__ = ["RunView", "event_line", "style_of"]

_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "yellow",
    "inconclusive": "yellow",
}


def style_of(status: str) -> str:
    """Return the rich style of a run's or a step's status."""
    return _STYLES.get(status, "")


def event_line(event: Event, titles: Mapping[str, str]) -> str:
    """Return what an event says to somebody who watches; empty for those of no interest."""
    make = _LINES.get(event.kind)
    return make(event.step or "", event.data, titles) if make else ""


def _started(step: str, data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    again = f" (attempt {data['attempt']})" if data.get("attempt", 1) > 1 else ""
    return f"{step:<8} started{again}: {titles.get(step, '')}"


def _finished(step: str, data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    error = f": {data['error']}" if data.get("error") else ""
    return f"{step:<8} {data.get('status', 'finished')}{error}"


def _decided(step: str, data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if data.get("state") != "enabled":
        return ""
    target = str(data.get("edge", "")).rpartition("_")[2]
    return f"{step:<8}   -> {target}, by {data.get('by')}: {data.get('evidence')}"


def _asked(step: str, data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    until = f" at {data['expires']}" if data.get("expires") else ""
    default = f"; default {data.get('default')}{until}" if data.get("default") else ""
    options = "|".join(map(str, data.get("options", ())))
    return f"{step:<8} asks {data.get('gate')}: {data.get('question')} [{options}]{default}"


def _answered(step: str, data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    return f"{step:<8} {data.get('gate')}: {data.get('answer')}, by {data.get('by')}"


def _retried(step: str, data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    return f"{step:<8} again in {data.get('wait', 0):.1f} s: {data.get('error')}"


_LINES: Mapping[str, Callable[[str, Mapping[str, Any], Mapping[str, str]], str]] = {
    "step_started": _started,
    "step_finished": _finished,
    "step_retried": _retried,
    "step_cancelled": lambda step, data, titles: f"{step:<8} cancelled: {data.get('reason')}",
    "edge_decided": _decided,
    "gate_opened": _asked,
    "gate_answered": _answered,
    "lease_lost": lambda step, data, titles: f"{step:<8} lost its worker",
    "run_resumed": lambda step, data, titles: "resumed",
    "run_forked": lambda step, data, titles: f"forked from {data.get('from_run')}",
}


class RunView:
    """Shows events as they come. Enter it around the run; ``show`` takes each event.

    Args:
        console: where to.
        titles: steps' titles by id.
        quiet: show nothing at all.
    """

    def __init__(self, console: Console, titles: Mapping[str, str], *, quiet: bool = False) -> None:
        self.console = console
        self.titles = dict(titles)
        self.quiet = quiet
        self._running: dict[str, None] = {}
        self._status: Status | None = None
        # A question is asked in a thread of its own while events go on.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.quiet:
            self._status = self.console.status("starting …")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def note(self, text: str) -> None:
        """Show a line of our own."""
        if not self.quiet:
            with self._lock:
                self.console.print(Text(text, style="dim"), soft_wrap=True)

    def show(self, event: Event) -> None:
        """Show one event."""
        if self.quiet:
            return
        with self._lock:
            self._follow(event)
            line = event_line(event, self.titles)
            if line:
                style = style_of(str(event.data.get("status", "")))
                self.console.print(Text(line, style=style), soft_wrap=True)

    def ask(self, question: Question) -> str:
        """Ask a person at this terminal and return what was typed; blocks."""
        with self._lock:
            if self._status is not None:
                self._status.stop()
            options = "/".join(question.options)
            self.console.print(Text(question.text, style="bold"), soft_wrap=True)
        try:
            said = self.console.input(f"{options} (enter: {question.default}) > ").strip()
        except EOFError:
            said = ""
        with self._lock:
            if self._status is not None:
                self._status.start()
        return _option(said, question.options) if said else question.default

    def _follow(self, event: Event) -> None:
        """Keep the spinner's list of steps under way."""
        if event.kind == "step_started" and event.step:
            self._running[event.step] = None
        elif event.kind in ("step_finished", "step_cancelled", "step_retried") and event.step:
            self._running.pop(event.step, None)
        if self._status is not None:
            self._status.update(", ".join(self._running) or "waiting")


def _option(said: str, options: tuple[str, ...]) -> str:
    """Return the option that was meant: typed in full, or as the start of exactly one."""
    words = {"yes": "enabled", "y": "enabled", "no": "disabled", "n": "disabled"}
    meant = words.get(said.lower(), said.lower())
    found = [option for option in options if option.startswith(meant)]
    return found[0] if len(found) == 1 else said
