"""What an operator may set of the server. Times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentrt.errors import ConfigError
from agentrt.serving.contexts import Limits

__all__ = ["ServeSettings", "parse_api_keys"]


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of the HTTP server; the runtime has its own."""

    api_keys: Mapping[str, str] = field(default_factory=dict)
    """API key -> tenant. Empty: no key is asked for and everybody is tenant ``default``."""
    keepalive: float = 10.0
    """A stream that has nothing to say sends an SSE comment this often."""
    retry_after: int = 2
    """What a client is told to wait when the queue is full."""
    default_max_tokens: int = 1024
    """Output tokens of a chat request that states no limit."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Larger request bodies are refused."""
    sweep: float = 5.0
    """How often idle programs are looked for."""
    drain: float = 10.0
    """How long running turns may go on after the server was told to stop."""
    guides: Path | None = None
    """Directory of guide runs whose gates may be answered over HTTP; None offers no such routes."""
    sandboxes: bool = False
    """Offer ``/v1/sandboxes``: tools then run on this server, in the runtime's sandboxes."""
    max_sandboxes: int = 64
    """Sandboxes that one tenant may have at the same time."""
    sandbox_idle: float = 1800.0
    """A sandbox that was not used for this long is removed."""
    limits: Limits = field(default_factory=Limits)
    """How many contexts are remembered, and when an idle program ends."""


def parse_api_keys(text: str, *, where: str) -> dict[str, str]:
    """Return API key -> tenant from lines ``KEY TENANT``; ``#`` begins a comment line.

    Raises:
        ConfigError: a line has another form, a key stands twice, or there is none; ``where`` names
            the file in the message, which never shows a key.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] in keys:
            problem = "gives a key a second time" if len(words) == 2 else "is not 'KEY TENANT'"
            raise ConfigError(
                f"{where}, line {number}, {problem}.", remedy="Write one 'KEY TENANT' on each line."
            )
        keys[words[0]] = words[1]
    if not keys:
        raise ConfigError(
            f"{where} holds no API key.",
            remedy="Write 'KEY TENANT' lines, or leave the option out.",
        )
    return keys
