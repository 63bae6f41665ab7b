"""What a grammar's masks cost: how long they take, and how long a step waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.grammar import Grammar
from agentrt.engine.matcher import GrammarCompiler
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.engine.tokens import Tokenizer
from agentrt.scheduling.plan import SeqSlice, StepPlan

__all__ = ["MaskCost", "measure_masks"]

PAGE = 64
PROMPT = 32


@dataclass(frozen=True, slots=True)
class MaskCost:
    """Decode steps of ``turns`` turns. Milliseconds but for ``mask_us``, microseconds a mask.

    ``waiting`` is how long a step waited for masks, on average.
    """

    turns: int
    steps: int
    plain_step: float
    grammar_step: float
    mask_us: float
    waiting: float

    def to_json(self) -> dict[str, float | int]:
        """Return the figures."""
        return asdict(self)


def measure_masks(
    directory: Path,
    turns: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> MaskCost:
    """Decode with and without a grammar of JSON objects, one step of each after the other.

    Args:
        directory: a model's.
        turns: that decode together.
        steps: at most; turns that end are not replaced.
    """
    model, tokenizer = load_model(directory), Tokenizer.from_directory(directory)
    compiled = GrammarCompiler(tokenizer, tokenizer.eos_ids).compile(Grammar.json_object())
    plain, limited = (_backend(model, turns, steps) for _ in range(2))
    free = SamplingParams(seed=1)
    asked = SamplingParams(seed=1, grammar=Grammar.json_object())
    for turn in range(turns):
        plain.open(str(turn), range(10, 10 + PROMPT), free)
        limited.open(str(turn), range(10, 10 + PROMPT), asked, grammar=compiled)
    each = -(-(PROMPT + steps) // PAGE)
    live = list(range(turns))
    times: list[tuple[float, float]] = []
    for step in range(steps):
        start, count = (0, PROMPT) if step == 0 else (PROMPT + step - 1, 1)
        plan = StepPlan(
            tuple(
                SeqSlice(str(turn), start, count, range(turn * each, (turn + 1) * each), True)
                for turn in live
            )
        )
        begun = clock()
        plain.run(plan)
        between = clock()
        samples = limited.run(plan).samples
        if step:
            times.append((between - begun, clock() - between))
        live = [turn for turn in live if samples[str(turn)].finish is None]
        if not live:
            break
    masks = limited.mask_times
    assert masks is not None  # a grammar was opened
    return MaskCost(
        turns,
        len(times),
        1e3 * median([first for first, _ in times] or [0.0]),
        1e3 * median([second for _, second in times] or [0.0]),
        1e6 * masks.computing / max(masks.masks, 1),
        1e3 * masks.waiting / max(len(times), 1),
    )


def _backend(model: Decoder, turns: int, steps: int) -> TorchBackend:
    pages = turns * -(-(PROMPT + steps) // PAGE)
    return TorchBackend(model, TorchPagedAttention(model.config, pages, PAGE, model.dtype))
