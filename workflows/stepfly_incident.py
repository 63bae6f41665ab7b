"""StepFly's incident texts and the file that maps incidents to guides, as data.

An incident's text is untrusted, and may tell the answer; what is taken from it passes a redaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from agentrt.errors import GuideError

__all__ = [
    "Incident",
    "Redact",
    "load_incident",
    "load_incident_map",
    "parse_incident",
    "redact_urls",
]

Redact: TypeAlias = Callable[[str], str]
"""Changes a text before anything is read from it."""

_HEADER = re.compile(r"^([A-Za-z][A-Za-z0-9 _/-]*?):[ \t]*(.*)$")
_SECTION = re.compile(r"^##\s+(.+?)\s*#*$")
_BULLET = re.compile(r"^\s*[-*]\s+`?([A-Za-z_][\w ]*?)`?\s*:\s*(.*)$")
_REMARK = re.compile(r"\s+\([^()]*\)\s*$")
_URL = re.compile(r"\b(?:https?|ftp)://[^\s)>\]]+")
_PARAMETERS = "parameters for analysis"


@dataclass(frozen=True, slots=True)
class Incident:
    """An incident. ``fields`` are its header lines, ``sections`` its texts by heading.

    ``parameters`` are the values that the guide is run with, without trailing remarks.
    """

    id: str
    title: str
    fields: Mapping[str, str]
    parameters: Mapping[str, str]
    sections: Mapping[str, str]


def redact_urls(text: str) -> str:
    """Take the addresses out of a text, as StepFly does."""
    return _URL.sub("[URL removed]", text)


def load_incident(path: Path | str, *, redact: Redact = redact_urls) -> Incident:
    """Read an incident file; ``redact`` sees its whole text first.

    Raises:
        GuideError: the file cannot be read, or has no incident id.
    """
    return parse_incident(read_text(Path(path)), path=str(path), redact=redact)


def parse_incident(
    text: str, *, path: str = "incident.txt", redact: Redact = redact_urls
) -> Incident:
    """Read an incident's text; see :func:`load_incident`.

    Raises:
        GuideError: it has no ``Incident ID:`` line, or names a parameter twice.
    """
    header, sections = _split(redact(text))
    fields = _fields(header)
    by_name = {name.lower(): value for name, value in fields.items()}
    incident_id = by_name.get("incident id", "")
    if not incident_id:
        raise GuideError(
            f"{path}:1: there is no incident id.", remedy="Begin the file with 'Incident ID: ...'."
        )
    wanted = next((body for name, body in sections.items() if name.lower() == _PARAMETERS), "")
    return Incident(
        incident_id, by_name.get("title", ""), fields, _parameters(wanted, path), sections
    )


def load_incident_map(path: Path | str) -> dict[str, str]:
    """Read ``{"<incident id>": "<guide file>.md"}``.

    Raises:
        GuideError: the file cannot be read or has another form.
    """
    remedy = 'Write {"<incident id>": "<guide file>.md"}.'
    try:
        data = json.loads(read_text(Path(path)))
    except json.JSONDecodeError as error:
        raise GuideError(f"{path}:{error.lineno}: not JSON: {error.msg}.", remedy=remedy) from None
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data.values()):
        raise GuideError(f"{path}:1: not a mapping of texts.", remedy=remedy)
    for incident, guide in data.items():
        if Path(guide).name != guide:
            raise GuideError(
                f"{path}: incident {incident!r} maps to {guide!r}, which is not a plain file name.",
                remedy=remedy,
            )
    return data


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        GuideError: there is no such file, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GuideError(
            f"{path}:1: cannot be read: {error}.", remedy="Check the path and the encoding (UTF-8)."
        ) from None


def _split(text: str) -> tuple[list[str], dict[str, str]]:
    """Return the lines before the first ``##`` and the text below each."""
    header: list[str] = []
    sections: dict[str, list[str]] = {}
    current = header
    for line in text.splitlines():
        if heading := _SECTION.match(line):
            current = sections.setdefault(heading[1], [])
        else:
            current.append(line)
    return header, {name: "\n".join(lines).strip() for name, lines in sections.items()}


def _fields(lines: list[str]) -> dict[str, str]:
    matches = (_HEADER.match(line.strip()) for line in lines)
    return {match[1].strip(): match[2].strip() for match in matches if match}


def _parameters(section: str, path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in section.splitlines():
        if match := _BULLET.match(line):
            if match[1] in found:
                raise GuideError(
                    f"{path}: parameter {match[1]!r} is given twice.",
                    remedy="Keep one of the two lines under '## Parameters for Analysis'.",
                )
            found[match[1]] = _REMARK.sub("", match[2]).strip().strip("`").strip()
    return found
