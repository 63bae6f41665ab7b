"""What it takes to move KV from one worker to another."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from agentrt.errors import ConfigError

__all__ = ["Network", "NetworkStatistics"]


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """Transfers and tokens so far; ``seconds`` is the sum of the transfers' times, waiting too."""

    transfers: int
    tokens: int
    seconds: float


@dataclass(slots=True)
class Network:
    """Every worker has one link of its own, full duplex, into a fabric that is never the limit.

    A transfer takes ``latency`` seconds and its bytes over ``bandwidth`` (bytes a second); it
    starts when both the sender's outgoing and the receiver's incoming link are free.
    """

    bandwidth: float
    latency: float
    token_bytes: int
    _out: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _in: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _counts: list[float] = field(default_factory=lambda: [0, 0, 0.0])

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or self.latency < 0:
            raise ConfigError(
                f"The network has {self.bandwidth} bytes a second and {self.latency} s latency.",
                remedy="Give a bandwidth above 0 and a latency of 0 or more.",
            )

    def seconds(self, tokens: int) -> float:
        """Return what moving ``tokens`` of KV takes on free links."""
        return self.latency + tokens * self.token_bytes / self.bandwidth

    def send(self, source: str, target: str, tokens: int, now: float) -> float:
        """Queue a transfer and return when it is there."""
        start = max(now, self._out[source], self._in[target])
        end = start + self.seconds(tokens)
        self._out[source] = self._in[target] = end
        self._counts[0] += 1
        self._counts[1] += tokens
        self._counts[2] += end - now
        return end

    def statistics(self) -> NetworkStatistics:
        """Return counters."""
        transfers, tokens, seconds = self._counts
        return NetworkStatistics(int(transfers), int(tokens), seconds)
