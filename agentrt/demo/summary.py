"""What a run of the demo came to: figures for scripts, and the files it leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentrt.bench.records import RunRecord
from agentrt.demo.progress import Row
from agentrt.demo.run import Demo
from agentrt.errors import ConfigError

__all__ = ["headline", "prepare_directory", "summarise", "write_json"]


def summarise(demo: Demo, record: RunRecord, *, sandbox: str, report: Path) -> dict[str, Any]:
    """Return the figures of ``agentrt demo --json``. Counts of tokens and of calls; seconds."""
    rows = list(demo.rows.values())
    return {
        "programs": len(rows),
        "resolved": sum(row.state == "resolved" for row in rows),
        "turns": len(record.turns),
        "tool_calls": sum(row.tool_calls for row in rows),
        "prompt_tokens": sum(turn.prompt_tokens for turn in record.turns),
        "prefix_hit_tokens": sum(turn.cached_tokens for turn in record.turns),
        "prefilled_tokens": sum(turn.prefilled_tokens for turn in record.turns),
        "output_tokens": sum(turn.output_tokens for turn in record.turns),
        "seconds": round(max((row.finished or 0.0 for row in rows), default=0.0), 3),
        "complete": demo.complete,
        "policy": record.policy,
        "sandbox": sandbox,
        "report": str(report),
        "skipped": {one.name: one.reason for one in demo.skipped},
        "outcomes": {row.name: _outcome(row) for row in rows},
    }


def _outcome(row: Row) -> dict[str, Any]:
    return {"kind": row.kind, "outcome": row.outcome, "detail": row.detail}


def headline(figures: Mapping[str, Any]) -> str:
    """Return the figures in one sentence."""
    share = figures["prefix_hit_tokens"] / max(1, figures["prompt_tokens"])
    ending = "" if figures["complete"] else ", interrupted"
    return (
        f"{figures['resolved']} of {figures['programs']} agents resolved their issue in "
        f"{figures['seconds']:.1f} s{ending}: {figures['turns']} turns, "
        f"{figures['tool_calls']} commands, {share:.0%} of {figures['prompt_tokens']:,} prompt "
        f"tokens from the KV cache"
    )


def prepare_directory(directory: Path, files: Iterable[str]) -> Path:
    """Make the output directory and return its absolute path; old ``files`` in it are removed.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(f"no permission to write to {directory}")
        for name in files:
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The output directory cannot be used: {error}.",
            remedy="Name another one with --out DIR.",
        ) from error
    return directory.resolve()


def write_json(path: Path, figures: Mapping[str, Any], demo: Demo, record: RunRecord) -> None:
    """Write ``results.json``: figures, one row a program, and the whole run record."""
    data = {
        "format": 1,
        "summary": dict(figures),
        "programs": [asdict(row) for row in demo.rows.values()],
        "run": record.to_json(),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
