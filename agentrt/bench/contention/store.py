"""The output directory: every cell that ended, so that the same command goes on from there.

DIR/runs/POLICY-RUN.json    one cell
DIR/results.json            figures of all cells
DIR/report.html             the same to look at
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrt.bench.contention.results import Outcome
from agentrt.bench.settings import digest
from agentrt.bench.store import write_json
from agentrt.errors import ConfigError

__all__ = ["ContentionStore"]

FILES = ("results.json", "report.html")


class ContentionStore:
    """One output directory, tied to what the figures depend on.

    Raises:
        ConfigError: it cannot be written, or holds cells of other settings.
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
        kept = list(self._runs.glob("*.json"))
        if fresh:
            for path in [*kept, *(directory / name for name in FILES)]:
                path.unlink(missing_ok=True)
        else:
            for path in kept:
                self._read(path)

    def path(self, policy: str, run: int) -> Path:
        """Where a cell is kept."""
        return self._runs / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', policy)}-{run}.json"

    def load(self, policy: str, run: int) -> Outcome | None:
        """Return a cell that ended earlier, or None."""
        path = self.path(policy, run)
        return Outcome.from_json(self._read(path)) if path.exists() else None

    def save(self, outcome: Outcome) -> None:
        """Keep a cell."""
        data = outcome.to_json() | {"digest": self._digest}
        write_json(self.path(outcome.policy, outcome.run), data, indent=None)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            kept = data.pop("digest")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not a run of ours: {error!r}.", remedy="Remove it, or give --fresh."
            ) from error
        if kept != self._digest:
            raise ConfigError(
                f"{path} is of a run with other settings or other curves.",
                remedy="Give --fresh to start over, or name another --out directory.",
            )
        return data
