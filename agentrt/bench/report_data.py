"""A run as compact JSON for the report's script: integer columns, packed where they hardly vary.

Times become whole ticks of ``unit`` seconds and each is stored as the difference from the one that
precedes it, so that a turn costs some tens of bytes. ``assets/decode.js`` is the reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agentrt.bench.records import (
    KVSample,
    PinRecord,
    ProgramRecord,
    RunRecord,
    ToolRecord,
    TurnRecord,
)
from agentrt.bench.report_html import shorten

__all__ = [
    "KV_SAMPLES",
    "OUTCOMES",
    "REASONS",
    "all_programs",
    "pack_column",
    "pack_run",
    "run_end",
    "sample_kv",
]

Column: TypeAlias = Sequence[int | None]
_Laned: TypeAlias = TurnRecord | ToolRecord | PinRecord

KV_SAMPLES = 1600
"""Most samples of the page pool kept for one run: about one for each pixel of a wide plot."""

REASONS = ("stop", "length", "cancelled", "failed")
OUTCOMES = ("handed_off", "expired", "broken", "final")
_EXCERPT = 300
_SPARSE_SHARE = 0.6


@dataclass(slots=True)
class _Strings:
    """Texts by number; number 0 is the empty text."""

    values: list[str] = field(default_factory=lambda: [""])
    numbers: dict[str, int] = field(default_factory=lambda: {"": 0})

    def add(self, text: str) -> int:
        text = shorten(text, _EXCERPT).encode("utf-8", "replace").decode("utf-8")
        if text not in self.numbers:
            self.numbers[text] = len(self.values)
            self.values.append(text)
        return self.numbers[text]


def pack_column(values: Column) -> Any:
    """Return ``values`` itself, or, where most are one value, only the others.

    The packed form is ``{"k": common, "i": [gaps between positions], "v": [values there]}``.
    """
    if not values:
        return []
    common, count = Counter(values).most_common(1)[0]
    if count < len(values) * _SPARSE_SHARE:
        return list(values)
    places = [place for place, value in enumerate(values) if value != common]
    gaps = [here - before for here, before in zip(places, [0, *places], strict=False)]
    return {"k": common, "i": gaps, "v": [values[place] for place in places]}


def pack_run(run: RunRecord) -> dict[str, Any]:
    """Return everything that the time line shows of ``run``, as plain JSON values."""
    end = run_end(run)
    return _Packer(run, unit=0.001 if end >= 600 else 0.0001).pack(end)


def sample_kv(samples: Sequence[KVSample], limit: int = KV_SAMPLES) -> list[KVSample]:
    """Return at most ``limit`` of ``samples``: of each slice of time, the one with most leased.

    Kept samples are true moments, so a stack never shows a mixture that did not exist.
    """
    if len(samples) <= limit:
        return list(samples)
    first, last = samples[0].time, samples[-1].time
    width = (last - first) / limit or 1.0
    best: dict[int, KVSample] = {}
    for sample in samples:
        slot = min(limit - 1, int((sample.time - first) / width))
        kept = best.get(slot)
        if kept is None or (sample.leased, sample.waiting) > (kept.leased, kept.waiting):
            best[slot] = sample
    return [best[slot] for slot in sorted(best)]


def run_end(run: RunRecord) -> float:
    """Return the last moment that any record of ``run`` names."""
    spans: Iterable[float] = (
        *(row.finished for row in run.programs),
        *(row.finished for row in run.turns),
        *(row.end for row in run.tools),
        *(row.end for row in run.pins),
        *(row.time for row in run.kv),
    )
    return max(spans, default=0.0)


class _Packer:
    """Turns one run into columns; rows are grouped by lane: one context of one program."""

    def __init__(self, run: RunRecord, unit: float) -> None:
        self.run = run
        self.unit = unit
        self.strings = _Strings()
        self.programs = all_programs(run)
        rows: list[_Laned] = [*run.turns, *run.tools, *run.pins]
        order = {row.program: place for place, row in enumerate(self.programs)}
        contexts = {(order[row.program], row.context): None for row in rows}
        keys = sorted(contexts, key=lambda key: (key[0], key[1] != "main", key[1]))
        self.lanes = {key: place for place, key in enumerate(keys)}
        self.order = order

    def pack(self, end: float) -> dict[str, Any]:
        run = self.run
        packed = {
            "policy": run.policy,
            "seed": run.seed,
            "engine": run.engine,
            "pool": run.pool_tokens,
            "complete": run.complete,
            "unit": self.unit,
            "end": self.ticks(end),
            "lanes": [[place, self.strings.add(name)] for place, name in self.lanes],
            "programs": self._programs(),
            "turns": self._turns(),
            "tools": self._tools(),
            "pins": self._pins(),
            "kv": self._kv(),
        }
        return {**packed, "strings": self.strings.values}

    def ticks(self, time: float) -> int:
        return round(time / self.unit)

    def lane(self, row: _Laned) -> int:
        return self.lanes[self.order[row.program], row.context]

    def _programs(self) -> dict[str, Any]:
        rows = self.programs
        add = self.strings.add
        return {
            "name": [add(row.program) for row in rows],
            "tenant": pack_column([add(row.tenant) for row in rows]),
            "arrival": [self.ticks(row.arrival) for row in rows],
            "finished": [self.ticks(row.finished) for row in rows],
            "outcome": pack_column([add(row.outcome) for row in rows]),
            "detail": pack_column([add(row.detail) for row in rows]),
        }

    def _turns(self) -> dict[str, Any]:
        rows = sorted(self.run.turns, key=lambda row: (self.lane(row), row.submitted, row.index))
        lanes = [self.lane(row) for row in rows]
        begins = [self.ticks(row.submitted) for row in rows]
        ends = [self.ticks(row.finished) for row in rows]
        columns: dict[str, Column] = {
            "lane": _steps(lanes),
            "begin": [at - before for at, before in zip(begins, [0, *ends], strict=False)],
            "admit": [self._after(row.admitted, row.submitted) for row in rows],
            "token": [self._after(row.first_token, row.submitted) for row in rows],
            "end": [end - at for at, end in zip(begins, ends, strict=True)],
            "queue": [self._queue_left(row) for row in rows],
            "decode": [self._decode_left(row) for row in rows],
            "index": _steps([row.index for row in rows]),
            "first": [int(row.first) for row in rows],
            "prompt": [row.prompt_tokens for row in rows],
            # Most of a prompt is cached, so what is not is the shorter number.
            "fresh": [row.prompt_tokens - row.cached_tokens for row in rows],
            "extra": [row.prefilled_tokens - row.prompt_tokens + row.cached_tokens for row in rows],
            "ideal": [row.ideal_tokens for row in rows],
            "output": [row.output_tokens for row in rows],
            "preempted": [row.preemptions for row in rows],
            "reason": [REASONS.index(row.reason) for row in rows],
            "text": [self.strings.add(row.text) for row in rows],
        }
        return _packed(len(rows), columns)

    def _after(self, time: float | None, since: float) -> int | None:
        return None if time is None else self.ticks(time) - self.ticks(since)

    def _queue_left(self, row: TurnRecord) -> int:
        """Queueing beyond the first wait (after a preemption); 0 for an ordinary turn."""
        waited = self.ticks(row.finished if row.admitted is None else row.admitted)
        return _near_zero(self.ticks(row.queue_seconds) - (waited - self.ticks(row.submitted)))

    def _decode_left(self, row: TurnRecord) -> int:
        """Decoding that differs from the span after the first token; 0 for an ordinary turn."""
        start = self.ticks(row.finished if row.first_token is None else row.first_token)
        return _near_zero(self.ticks(row.decode_seconds) - (self.ticks(row.finished) - start))

    def _tools(self) -> dict[str, Any]:
        rows = sorted(self.run.tools, key=lambda row: (self.lane(row), row.start, row.end))
        begins = [self.ticks(row.start) for row in rows]
        add = self.strings.add
        columns: dict[str, Column] = {
            "lane": _steps([self.lane(row) for row in rows]),
            "begin": _steps(begins),
            "end": [self.ticks(row.end) - at for row, at in zip(rows, begins, strict=True)],
            "name": [add(row.name) for row in rows],
            "status": [add(row.status) for row in rows],
            "exit": [row.exit_code for row in rows],
            "memory": [row.peak_memory for row in rows],
            "cpu": [
                None if row.cpu_seconds is None else round(row.cpu_seconds * 1000) for row in rows
            ],
            "command": [add(row.command) for row in rows],
        }
        return _packed(len(rows), columns)

    def _pins(self) -> dict[str, Any]:
        rows = sorted(self.run.pins, key=lambda row: (self.lane(row), row.start, row.end))
        begins = [self.ticks(row.start) for row in rows]
        columns: dict[str, Column] = {
            "lane": _steps([self.lane(row) for row in rows]),
            "begin": _steps(begins),
            "end": [self.ticks(row.end) - at for row, at in zip(rows, begins, strict=True)],
            "ttl": [_milliseconds(row.ttl) for row in rows],
            "tokens": [row.tokens for row in rows],
            "outcome": [OUTCOMES.index(row.outcome) for row in rows],
        }
        return _packed(len(rows), columns)

    def _kv(self) -> dict[str, Any]:
        rows = sample_kv(sorted(self.run.kv, key=lambda row: row.time))
        columns: dict[str, Column] = {
            "time": _steps([self.ticks(row.time) for row in rows]),
            "leased": [row.leased for row in rows],
            "pinned": [row.pinned for row in rows],
            "cached": [row.cached for row in rows],
            "free": [row.free for row in rows],
            "running": [row.running for row in rows],
            "waiting": [row.waiting for row in rows],
        }
        return _packed(len(rows), columns)


def all_programs(run: RunRecord) -> list[ProgramRecord]:
    """Return the programs by arrival, with a row for those that only turns, tools or pins name.

    An interrupted run has no record yet of the programs that were still going.
    """
    known = {row.program: row for row in run.programs}
    starts: dict[str, tuple[float, float, str]] = {}
    for program, tenant, start, end in _mentions(run):
        if program not in known:
            before = starts.get(program, (start, end, tenant))
            starts[program] = (min(start, before[0]), max(end, before[1]), before[2] or tenant)
    unfinished = [
        ProgramRecord(name, tenant, start, end, "cancelled", "had not ended when the run stopped")
        for name, (start, end, tenant) in starts.items()
    ]
    return sorted([*known.values(), *unfinished], key=lambda row: (row.arrival, row.program))


def _mentions(run: RunRecord) -> Iterable[tuple[str, str, float, float]]:
    for turn in run.turns:
        yield turn.program, turn.tenant, turn.submitted, turn.finished
    for tool in run.tools:
        yield tool.program, "", tool.start, tool.end
    for pin in run.pins:
        yield pin.program, "", pin.start, pin.end


def _packed(count: int, columns: dict[str, Column]) -> dict[str, Any]:
    return {"count": count, **{name: pack_column(values) for name, values in columns.items()}}


def _steps(values: Sequence[int]) -> list[int]:
    """Return each value's difference from the one before it, the first one's from 0."""
    return [here - before for here, before in zip(values, [0, *values], strict=False)]


def _near_zero(ticks: int) -> int:
    """Drop what is only the rounding of two ends."""
    return 0 if abs(ticks) <= 2 else ticks


def _milliseconds(time: float) -> int | None:
    """Return ``time`` in ms; None for a pin without an end of its own (an infinite TTL)."""
    return round(time * 1000) if time < 1e12 else None
