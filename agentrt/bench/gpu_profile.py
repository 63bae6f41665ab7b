"""What the device did while something ran: its kernels by time, and how long it did nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch.profiler import ProfilerActivity, profile

__all__ = ["Kernels", "Span", "idle_share", "kernel_table"]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that ran: its name, and when, in microseconds."""

    name: str
    start: float
    end: float


def idle_share(spans: Iterable[Span]) -> float:
    """Return the share of the time from the first start to the last end in which nothing ran.

    Raises:
        ValueError: there are no spans.
    """
    ordered = sorted(spans, key=lambda span: span.start)
    if not ordered:
        raise ValueError("nothing ran on the device")
    busy, until = 0.0, ordered[0].start
    for span in ordered:
        busy += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    whole = until - ordered[0].start
    return 1.0 - busy / whole if whole else 0.0


def kernel_table(spans: Iterable[Span], most: int = 40) -> str:
    """Return the kernels by their time together: share, milliseconds, calls, name."""
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for span in spans:
        times[span.name] += span.end - span.start
        calls[span.name] += 1
    whole = sum(times.values()) or 1.0
    lines = [f"{'share':>7} {'ms':>10} {'calls':>7}  kernel"]
    for name in sorted(times, key=lambda name: -times[name])[:most]:
        milliseconds = times[name] / 1e3
        lines.append(f"{times[name] / whole:7.1%} {milliseconds:10.3f} {calls[name]:7}  {name}")
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Kernels:
    """Records what ran on the device (on a CPU: its operators) within ``record``."""

    device: str
    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record what runs within it."""
        on_gpu = self.device.startswith("cuda")
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as recorded:
            yield
        self.spans = [
            Span(event.name, event.time_range.start, event.time_range.end)
            for event in recorded.events() or []
            if (event.device_type.name == "CUDA") is on_gpu
        ]
