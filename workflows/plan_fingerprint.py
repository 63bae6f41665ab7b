"""A digest of everything a plan was made from, so that a run is only resumed with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from agentrt.errors import GuideError
from agentrt.workflows.guide import Guide
from agentrt.workflows.parse import load_guide

__all__ = ["FORMAT_VERSION", "fingerprint"]

FORMAT_VERSION = 1
"""Raised when the same guide comes to mean something else."""

DEEPEST_NESTING = 10

# Where a line is, or what file it came from, does not change what a guide means.
_IGNORED = frozenset({"line", "path", "text"})


def fingerprint(guide: Guide) -> str:
    """Return 64 hexadecimal digits over the guide, its queries' file and its nested guides.

    Line ends, blanks at line ends and blank lines at the end of the text make no difference.

    Raises:
        GuideError: a file that the guide names is missing, or guides nest in a circle.
    """
    digest = hashlib.sha256(f"agentrt guide {FORMAT_VERSION}".encode())
    for part in _parts(guide, ()):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()


def _parts(guide: Guide, outer: tuple[Path, ...]) -> Iterator[bytes]:
    yield json.dumps(_plain(guide), sort_keys=True).encode()
    yield "\n".join(line.rstrip() for line in guide.text.splitlines()).rstrip().encode()
    if not guide.path:
        return
    here = Path(guide.path).resolve()
    if here in outer or len(outer) >= DEEPEST_NESTING:
        raise GuideError(
            f"{guide.path}: the guide nests itself, or guides nest too deeply.",
            remedy="Remove the policy `guide` that leads back.",
        )
    if guide.queries_file:
        yield from _content(here.parent / guide.queries_file, guide)
    for step in guide.steps:
        if step.guide:
            yield from _parts(load_guide(here.parent / step.guide), (*outer, here))


def _plain(value: Any) -> Any:
    """A value as JSON, without what equals its default: new fields keep old fingerprints."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _plain(getattr(value, each.name))
            for each in fields(value)
            if each.name not in _IGNORED and getattr(value, each.name) != each.default
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _content(path: Path, guide: Guide) -> Iterator[bytes]:
    files = sorted(path.rglob("*.*")) if path.is_dir() else [path]
    for file in files:
        if file.is_dir() or "__pycache__" in file.parts:
            continue
        try:
            yield file.name.encode()
            yield file.read_bytes()
        except OSError as error:
            raise GuideError(
                f"{guide.path} names the queries {guide.queries_file}, which cannot be read "
                f"({error.strerror}).",
                remedy="Correct `queries=` in the guide's settings, or add the file beside it.",
            ) from error
