"""The report of a run: Markdown, and one HTML file that opens from disk and asks the network for
nothing. Both are put together from the run's log; a model's prose is marked as such.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from agentrt.errors import ConfigError
from agentrt.workflows.data import DataStore
from agentrt.workflows.log import RunLog
from agentrt.workflows.plan import Plan
from agentrt.workflows.report_build import build_report
from agentrt.workflows.report_html import to_html
from agentrt.workflows.report_markdown import to_markdown
from agentrt.workflows.report_model import Report

__all__ = ["Report", "build_report", "report_run", "to_html", "to_markdown", "write_report"]

_FORMS = {".html": to_html, ".md": to_markdown}


def report_run(
    log: RunLog, run_id: str, plan: Plan, *, data: DataStore | None = None, summary: str = ""
) -> Report:
    """Return the report of a run in a log.

    Raises:
        InvalidRequest: the log has no such run.
    """
    return build_report(log.events(run_id), plan, run_id=run_id, data=data, summary=summary)


def write_report(report: Report, path: str | Path) -> Path:
    """Write a report to an ``.html`` or ``.md`` file, replacing it in one step.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    target = Path(path)
    form = _FORMS.get(target.suffix)
    if form is None:
        raise ConfigError(
            f"A report cannot be written as {target.name}.", remedy="Name it .html or .md."
        )
    text = form(report)
    try:
        _replace(target, text)
    except OSError as error:
        raise ConfigError(
            f"The report {target} cannot be written: {error}.",
            remedy="Check that the folder is there, may be written, and has room.",
        ) from error
    return target


def _replace(target: Path, text: str) -> None:
    """Write beside the file first: whoever opens it sees the old report or the new one, whole."""
    number, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        # mkstemp makes files that only their owner may read; a report is made to be shown.
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
