"""The line protocol between scripts/bench-engine and the engines that it measures.

Each engine is a process of its own, so that no two share threads or an OpenMP runtime. A line of
JSON on its standard input asks, a line on what was its standard output answers; whatever the engine
prints goes to standard error. Only the standard library is imported here: every engine's own
environment runs this file.

    load  {model, threads}                    -> {version, note}
    start {seed, batch, context, room}        -> {seconds, tokens}: prompts computed, first tokens
    steps {count}                             -> {seconds}: so many steps of the whole batch
    stop  {}                                  -> {}: the batch and its keys and values are gone

Our own engine answers more: see its methods.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any, Protocol

FIRST_ID = 16
"""Ids below are special tokens of the checkpoint."""


class Rig(Protocol):
    """One engine, driven step by step."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Load the checkpoint in this directory; returns version and notes."""
        ...

    def start(self, prompts: list[list[int]], room: int) -> dict[str, Any]:
        """Compute the prompts and choose a token for each, with room for ``room`` more steps."""
        ...

    def steps(self, count: int) -> dict[str, Any]:
        """Decode ``count`` tokens for every sequence; returns the seconds that it took."""
        ...

    def stop(self) -> dict[str, Any]:
        """Let go of the batch."""
        ...


def prompts(seed: int, batch: int, context: int, vocabulary: int) -> list[list[int]]:
    """Return random prompts; the same ones for every engine."""
    draw = random.Random(seed)
    return [[draw.randrange(FIRST_ID, vocabulary) for _ in range(context)] for _ in range(batch)]


def serve(rig: Rig) -> None:
    """Answer requests until the input ends. An error is an answer, and not the end."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    vocabulary = 0
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "load":
                with open(os.path.join(request["model"], "config.json"), encoding="utf-8") as file:
                    vocabulary = json.load(file)["vocab_size"]
                answer = rig.load(request["model"], request["threads"])
            elif do == "start":
                made = prompts(request["seed"], request["batch"], request["context"], vocabulary)
                answer = rig.start(made, request["room"])
            else:
                answer = getattr(rig, do)(**request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is told
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
        answers.write(json.dumps(answer) + "\n")
