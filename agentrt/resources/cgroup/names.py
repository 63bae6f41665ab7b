"""Pure: directory names for tenants and programs, whose ids may be anything."""

from __future__ import annotations

import hashlib
import re

__all__ = ["FRAMEWORK", "cgroup_name", "program_place"]

FRAMEWORK = "framework"
LONGEST = 48


def cgroup_name(text: str) -> str:
    """A directory name for ``text``: itself if that is plain, else a like one with a hash.

    Two texts never share a name, and no name is one that the kernel uses for its files.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,48}", text) and text != FRAMEWORK:
        return text
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", text)[: LONGEST - 10]
    # A plain name holds no "=", so that none can be made to look like a hashed one.
    return f"{plain}={hashlib.sha256(text.encode()).hexdigest()[:10]}"


def program_place(tenant: str, program: str) -> str:
    """Where a program's cgroups are, below the run's directory."""
    return f"{cgroup_name(tenant)}/{cgroup_name(program)}"
