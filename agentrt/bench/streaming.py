"""How much sooner the first token comes where a tool's output is computed while the tool runs.

A program takes a turn, then runs a command that prints so many tokens over so many seconds, then
takes a turn that reads all of it. Measured is the time from the command's end to the first token of
that turn: with the output fed to an open turn, and without. Both alternate in one run, each time
with another text, so that nothing is found that the measure itself left in the cache.
"""

from __future__ import annotations

import random
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from agentrt.engine.params import SamplingParams
from agentrt.errors import BackendUnavailable
from agentrt.program import Program
from agentrt.runtime import Runtime, RuntimeConfig
from agentrt.sandbox.base import Sandbox

__all__ = ["StreamingGain", "measure_streaming"]

WORDS = ("def", "return", "value", "test", "passed", "error", "line", "in", "module", "for", "of")
BATCHES = 20
"""How often the command prints."""
ANSWER = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
SCRIPT = """
import sys, time
lines = sys.stdin.read().splitlines(keepends=True)
pause, size = {seconds} / {batches}, -(-len(lines) // {batches})
for at in range(0, len(lines), size):
    time.sleep(pause)
    sys.stdout.write("".join(lines[at:at + size]))
    sys.stdout.flush()
"""


@dataclass(frozen=True, slots=True)
class StreamingGain:
    """Seconds from a tool's end to the next turn's first token; medians of ``repeats`` each.

    ``tokens`` of prompt came from the tool over ``tool_seconds``; ``ahead`` is the share of them
    that was computed when it ended. ``streamed_all`` and ``plain_all`` are the single times.
    """

    model: str
    tokens: int
    tool_seconds: float
    repeats: int
    streamed: float
    plain: float
    ahead: float
    streamed_all: tuple[float, ...]
    plain_all: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times sooner the first token came."""
        return self.plain / self.streamed

    def to_json(self) -> dict[str, Any]:
        """Return all figures by name."""
        return asdict(self) | {"ratio": self.ratio}


async def measure_streaming(
    config: RuntimeConfig | None = None,
    *,
    tokens: int = 4096,
    seconds: float = 5.0,
    repeats: int = 3,
    tell: Callable[[str], None] = lambda text: None,
) -> StreamingGain:
    """Measure on a runtime of its own; ``tell`` is given a line after each turn.

    Args:
        config: model, pool, dtype; None: the seeded default model. Its sandbox is where the command
            runs; ``process`` where it names none, as the command is this module's own.
        tokens: about how many the command prints.
        seconds: how long it takes to print them.
        repeats: turns each way.

    Raises:
        BackendUnavailable: a turn gave no token.
    """
    chosen = config or RuntimeConfig(sandbox="process", trusted=True)
    times: dict[bool, list[float]] = {True: [], False: []}
    ahead: list[float] = []
    async with Runtime.open(chosen) as runtime:
        for number in range(2 * repeats):
            streamed = number % 2 == 0
            trial = _Trial(runtime, number, tokens, seconds)
            waited, share = await trial.run(streamed=streamed)
            times[streamed].append(waited)
            if streamed:
                ahead.append(share)
            tell(f"{'streamed' if streamed else 'plain':8s} {waited:7.3f} s to the first token")
        return StreamingGain(
            runtime.model_name,
            tokens,
            seconds,
            repeats,
            statistics.median(times[True]),
            statistics.median(times[False]),
            statistics.median(ahead),
            tuple(times[True]),
            tuple(times[False]),
        )


@dataclass(slots=True)
class _Trial:
    """One program with one tool call, unlike any other in its every token."""

    runtime: Runtime
    number: int
    tokens: int
    seconds: float

    async def run(self, *, streamed: bool) -> tuple[float, float]:
        """Return the seconds to the first token, and the share of the prompt that was there."""
        messages = [{"role": "user", "content": f"{self.number}: run the tests."}]
        async with self.runtime.program() as program:
            first = await program.chat(messages, sampling=ANSWER)
            messages.append({"role": "assistant", "content": first.text})
            box = await program.sandbox()
            return await self._read(program, box, messages, streamed=streamed)

    async def _read(
        self, program: Program, box: Sandbox, messages: list[dict[str, str]], *, streamed: bool
    ) -> tuple[float, float]:
        script = SCRIPT.format(seconds=self.seconds, batches=BATCHES)
        command = shlex.join([sys.executable, "-c", script])
        text = self._text().encode()
        result = [*messages, {"role": "user", "content": ""}]
        opened = program.open_chat(result) if streamed else None
        on_stdout = None if opened is None else opened.write
        done = (await box.exec(command, stdin=text, on_stdout=on_stdout)).check()
        ended = self.runtime.clock()
        result[-1] = {"role": "user", "content": done.stdout.decode()}
        stream = await program.chat_stream(result, sampling=ANSWER, opened=opened)
        first: float | None = None
        async for chunk in stream:
            if first is None and chunk.tokens:
                first = self.runtime.clock() - ended
        if first is None or stream.stats is None:
            raise BackendUnavailable(
                f"The turn gave no token: {stream.error}.", remedy="See the engine's log."
            )
        return first, stream.stats.cached_tokens / stream.stats.prompt_tokens

    def _text(self) -> str:
        """Return lines of words of about so many tokens."""
        draw, encode = random.Random(self.number), self.runtime.tokenizer.encode
        lines: list[str] = []
        left = self.tokens
        while left > 0:
            words = " ".join(draw.choice(WORDS) for _ in range(10))
            lines.append(f"test {draw.randrange(10**6)} {words}\n")
            left -= len(encode(lines[-1]))
        return "".join(lines)
