"""The output directory: finished runs, the comparison, and what may be reused on the next try.

DIR/runs/POLICY-SEED.json   one run's records, written when it ends
DIR/results.json            figures and settings: the same bytes whenever a simulation is repeated
DIR/about.json              command, machine, date, seconds per run: what may differ
DIR/report.html
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrt.bench.records import RunRecord
from agentrt.bench.results import Comparison
from agentrt.bench.settings import digest
from agentrt.errors import ConfigError

__all__ = ["ResultStore"]

FILES = ("results.json", "about.json", "report.html")


class ResultStore:
    """One output directory, tied to one set of settings.

    Args:
        directory: made when it does not exist.
        settings: ``BenchSettings.to_json``'s result; runs of other settings are refused.
        fresh: forget what the directory holds of earlier comparisons.

    Raises:
        ConfigError: it holds runs of other settings, or cannot be written.
    """

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], *, fresh: bool = False
    ) -> None:
        self.directory = directory
        self._digest = digest(dict(settings))
        self._runs = directory / "runs"
        try:
            self._runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{directory} cannot be made: {error}.", remedy="Name another --out directory."
            ) from error
        if fresh:
            self._forget()
        self._check()

    def load(self, policy: str, seed: int) -> RunRecord | None:
        """Return a run that finished earlier, or None; an interrupted one counts as not there."""
        path = self.path(policy, seed)
        if not path.exists():
            return None
        record = self._read(path)
        return record if record.complete else None

    def save(self, record: RunRecord) -> Path:
        """Keep a run, whole or interrupted."""
        path = self.path(record.policy, record.seed)
        write_json(path, record.to_json() | {"digest": self._digest}, indent=None)
        return path

    def save_comparison(
        self,
        comparison: Comparison,
        seconds: Mapping[str, float],
        step_times: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Write ``results.json`` and ``about.json``; ``seconds`` are wall seconds by run.

        ``step_times`` are what the scheduler took, by run, where it was measured.
        """
        write_json(self.directory / "results.json", comparison.to_json())
        about = {
            "command": comparison.command,
            "machine": comparison.machine,
            "created": comparison.created,
            "wall_seconds": dict(seconds),
        }
        if step_times:
            about["scheduler_step_seconds"] = dict(step_times)
        write_json(self.directory / "about.json", about)

    def path(self, policy: str, seed: int) -> Path:
        """Return where a run is kept."""
        name = re.sub(r"[^A-Za-z0-9._=+-]", "_", policy)
        return self._runs / f"{name}-{seed}.json"

    def _forget(self) -> None:
        for path in [*self._runs.glob("*.json"), *(self.directory / name for name in FILES)]:
            path.unlink(missing_ok=True)

    def _check(self) -> None:
        for path in sorted(self._runs.glob("*.json")):
            if self._load_json(path).get("digest") != self._digest:
                raise ConfigError(
                    f"{path} is of a run with other settings or another workload.",
                    remedy="Give --fresh to start over, or name another --out directory.",
                )

    def _read(self, path: Path) -> RunRecord:
        data = self._load_json(path)
        data.pop("digest", None)
        try:
            return RunRecord.from_json(data)
        except (KeyError, TypeError) as error:
            raise self._damaged(path, error) from error

    def _load_json(self, path: Path) -> dict[str, Any]:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from error
        if not isinstance(data, dict):
            raise self._damaged(path, TypeError("not an object"))
        return data

    @staticmethod
    def _damaged(path: Path, error: Exception) -> ConfigError:
        return ConfigError(
            f"{path} is not a run of ours: {error}.", remedy="Remove it, or give --fresh."
        )


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(
            f"{path} cannot be written: {error}.", remedy="Free some space or use another --out."
        ) from error
