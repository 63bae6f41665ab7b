"""Commands in hints: the ``kv_hints`` 0.1 envelope, and edits of managed contexts.

They ask for moves of KV that policies decide here; none is carried out. Each is reported under its
name, so that an operator sees what clients ask for. Sources: vLLM #53423 (envelope), RFC #52113.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentrt.hints.table import Json, at

__all__ = ["MAX_ACTIONS", "PROTOCOL", "actions"]

PROTOCOL = "0.1"
MAX_ACTIONS = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,63}")
EDITS = "agent_hint.context_management"


def actions(body: Json) -> Iterator[tuple[str, bool]]:
    """Yield each command's label, and whether it is well formed."""
    envelope = body.get("kv_hints")
    if envelope is not None:
        yield from _envelope(envelope)
    managed = at(*EDITS.split("."))(body, {})
    if managed is not None:
        edits = managed.get("edits", []) if isinstance(managed, Mapping) else None
        yield from _rows(edits, f"body:{EDITS}", "type", "type")


def _envelope(envelope: Any) -> Iterator[tuple[str, bool]]:
    if not isinstance(envelope, Mapping):
        yield "body:kv_hints", False
    elif envelope.get("protocol_version") != PROTOCOL:
        yield "body:kv_hints.protocol_version", False
    else:
        yield from _rows(envelope.get("actions", []), "body:kv_hints", "action_type", "action_id")


def _rows(rows: Any, where: str, kind: str, needed: str) -> Iterator[tuple[str, bool]]:
    if not isinstance(rows, list) or len(rows) > MAX_ACTIONS:
        yield where, False
        return
    for row in rows:
        named = row.get(kind) if isinstance(row, Mapping) and row.get(needed) is not None else None
        if isinstance(named, str) and NAME.fullmatch(named):
            yield f"{where}:{named}", True
        else:
            yield f"{where}:", False
