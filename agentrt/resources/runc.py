"""Versions of runc and the container escapes that they are known to allow."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["KNOWN", "Flaw", "Version", "flaws_of", "parse_version"]

Version: TypeAlias = tuple[int, int, int, float]
"""Major, minor, patch, release candidate (infinity for a release)."""

CHANGELOG = Path("/usr/share/doc/runc/changelog.Debian.gz")


@dataclass(frozen=True, slots=True)
class Flaw:
    """A published flaw and, for each line of releases, the first version without it."""

    name: str
    what: str
    fixed: tuple[Version, ...]

    def affects(self, version: Version) -> bool:
        """Whether a version of the upstream project has it."""
        line = [fix for fix in self.fixed if fix[:2] == version[:2]]
        return version < (line[0] if line else max(self.fixed))


RELEASE = float("inf")
_NOVEMBER_2025 = ((1, 2, 8, RELEASE), (1, 3, 3, RELEASE), (1, 4, 0, 3.0))

KNOWN = (
    Flaw("CVE-2024-21626", "a leaked descriptor opens the host", ((1, 1, 12, RELEASE),)),
    Flaw("CVE-2025-31133", "masked paths can be replaced", _NOVEMBER_2025),
    Flaw("CVE-2025-52565", "the console's mount can be raced", _NOVEMBER_2025),
    Flaw("CVE-2025-52881", "writes to /proc can be redirected", _NOVEMBER_2025),
)


def parse_version(text: str) -> Version | None:
    """The version in the output of ``runc --version`` (``runc version 1.4.0-rc.3+ds1``)."""
    found = re.search(r"runc version (\d+)\.(\d+)\.(\d+)(?:[-~]rc\.?(\d+))?", text)
    if found is None:
        return None
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch), float(candidate) if candidate else RELEASE


def flaws_of(version: Version, changelog: Path = CHANGELOG) -> Sequence[Flaw]:
    """Known flaws of this version that the distribution's changelog does not call fixed."""
    try:
        repaired = gzip.decompress(changelog.read_bytes()).decode(errors="replace")
    except OSError:
        repaired = ""
    return [flaw for flaw in KNOWN if flaw.affects(version) and flaw.name not in repaired]
