"""Find a model by the name that its user gave: a directory, or ``org/name`` on the hub.

From the hub, the small files come first; the weights are fetched only once the configuration is
known to be one that can be served.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrt.engine.model.config import read_json
from agentrt.errors import ModelError

__all__ = ["Located", "locate"]

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_SMALL = ("*.json", "*.jinja", "tokenizer*")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model lies, and what it is called."""

    directory: Path
    name: str


def locate(
    name: str,
    *,
    check: Callable[[Path], object],
    cache: Path | None = None,
    offline: bool | None = None,
) -> Located:
    """Return the directory of a model, fetching it from the hub if it is none of this machine.

    Args:
        name: a directory, ``org/name``, or ``org/name@revision``.
        check: called with a directory that holds the small files; raises what is wrong with them.
        cache: the hub's cache; None takes its own default (``HF_HUB_CACHE``, ``HF_HOME``).
        offline: only look into that cache; None does as ``HF_HUB_OFFLINE`` says.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    path = Path(name).expanduser()
    found = _NAME.fullmatch(name)
    if path.is_dir() or found is None or name.startswith("."):
        # What is no directory is told when its config.json is read.
        return Located(path, path.resolve().name)
    hub = _Hub(found["repo"], found["revision"], cache, offline)
    directory = hub.fetch(_SMALL)
    check(directory)
    return Located(hub.fetch((*_SMALL, *_weights(directory))), found["repo"])


def _weights(directory: Path) -> list[str]:
    """Return the files that hold the weights: those of the index, else the single one."""
    if not (directory / _INDEX).is_file():
        return ["model.safetensors"]
    names = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(
            f"{directory / _INDEX} has no weight_map.", remedy="Download the model again."
        )
    return sorted({str(file) for file in names.values()})


@dataclass(frozen=True, slots=True)
class _Hub:
    repo: str
    revision: str | None
    cache: Path | None
    offline: bool | None

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Return the snapshot's directory with the files that match ``patterns``.

        Raises:
            ModelError: the hub or its cache does not have them.
        """
        hub = _import_hub()
        offline = hub.constants.HF_HUB_OFFLINE if self.offline is None else self.offline
        _logger.info("%s: fetching %s", self.repo, ", ".join(patterns))
        try:
            path = hub.snapshot_download(
                self.repo,
                revision=self.revision,
                cache_dir=self.cache,
                allow_patterns=list(patterns),
                local_files_only=offline,
            )
        except Exception as error:  # the hub's own, its HTTP client's, and the file system's
            raise self._error(error, offline) from error
        return Path(path)

    def _error(self, error: Exception, offline: bool) -> ModelError:
        kinds = {base.__name__ for base in type(error).__mro__}
        where = f"{self.repo}@{self.revision}" if self.revision else self.repo
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "GatedRepoError" in kinds:
            message = f"{where}: access to this model is restricted."
            remedy = "Ask for access on its page, then log in: hf auth login."
        elif "RevisionNotFoundError" in kinds:
            message, remedy = f"{where}: there is no such revision.", "Name another one, or none."
        elif "RepositoryNotFoundError" in kinds:
            message = f"{where}: there is no such directory here and no such model on the hub."
            remedy = "Correct the name; for a private model log in first: hf auth login."
        elif "LocalEntryNotFoundError" in kinds or offline:
            message = f"{where}: neither a directory nor whole in the hub's cache, and " + (
                "fetching is switched off (offline)."
                if offline
                else f"the hub is out of reach: {first}."
            )
            remedy = "Go online once, or name a directory that holds the model."
        else:
            message = f"{where} cannot be fetched: {type(error).__name__}: {first}."
            remedy = "Try again; what was fetched is kept. Or name a directory with the model."
        return ModelError(message, remedy=remedy)


def _import_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # not an attribute until it is imported
    except ImportError as error:
        raise ModelError(
            f"Models are fetched by huggingface_hub, which cannot be imported: {error}.",
            remedy="Install it: pip install 'agentrt[engine]'; or name a model directory.",
        ) from error
    return huggingface_hub
