"""The whole comparison: children started, cases and parts run, results kept as they come."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from agentrt.bench.engine_cases import OWN, Case, Limits, make_row
from agentrt.bench.engine_children import PEERS, Child, Peer, install
from agentrt.bench.engine_compare import run_case
from agentrt.bench.engine_parts import PARTS, needs
from agentrt.bench.engine_rows import SHAPES, shape
from agentrt.engine.model.make import default_model_dir, make_model
from agentrt.errors import BackendUnavailable, ConfigError

__all__ = ["EngineBench", "Store"]

Tell = Callable[[str], None]
SEED = 0


class Store:
    """The results file, written anew after every row, so that another run goes on from there.

    Args:
        path: of the file; None keeps nothing.
        settings: of this run. Rows of other settings are refused.

    Raises:
        ConfigError: the file has results of other settings, or is none of ours.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.found: dict[str, Any] = {**settings, "rows": [], "measures": {}, "engines": {}}
        if path is not None and path.exists():
            self._take(path, settings)

    def _take(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            same = kept["settings"] == settings["settings"]
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise ConfigError(
                f"{path} holds something else than results with these settings.",
                remedy="Name another file with --out, or remove this one.",
            )
        self.found = {**kept, "command": settings["command"]}

    def has(self, name: str) -> bool:
        """Say whether a row or a part is there."""
        return name in self.found["measures"] or any(
            row["name"] == name for row in self.found["rows"]
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row."""
        self.found["rows"].append(dict(row))
        self._write()

    def note(self, name: str, entry: Mapping[str, Any]) -> None:
        """Keep a part's number."""
        self.found["measures"][name] = dict(entry)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        work = self._path.with_name(f".{self._path.name}.partial")
        work.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        work.replace(self._path)


@dataclass(slots=True)
class EngineBench:
    """Runs what is asked for.

    Args:
        scripts: the folder of the children's programs.
        cache: where environments, models and logs are kept.
        peers: names of the engines to compare with.
        threads: of every engine.
        store: takes the results.
        tell: told what is going on.
        sessions: recorded texts for the drafting part, if there are any.
        load_limit: seconds that an engine may take to load, and compile, a model.
    """

    scripts: Path
    cache: Path
    peers: Sequence[str]
    threads: int
    store: Store
    tell: Tell
    sessions: Path | None = None
    load_limit: float = 900.0
    _pythons: dict[str, str] = field(default_factory=dict)
    _missing: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def default_cache() -> Path:
        """Return the folder for environments and models, below agentrt's cache."""
        return default_model_dir().parents[1] / "peers"

    def prepare(self) -> None:
        """Install the peers and make the models; what cannot be installed is told and left out."""
        self.cache.mkdir(parents=True, exist_ok=True)
        for name in self.peers:
            self.tell(f"installing {name} into {self.cache / name}, where it is not there yet")
            try:
                self._pythons[name] = install(PEERS[name], self.cache, sys.executable)
            except BackendUnavailable as error:
                self._missing[name] = error.message
                self.tell(error.message)

    def model(self, name: str) -> Path:
        """Return the directory of one of the shapes' seeded checkpoints, made if need be."""
        arch, size = SHAPES[name]
        directory = self.cache / "models" / f"{arch}-{size}-seed{SEED}"
        return make_model(directory, arch, size, SEED).directory

    @contextmanager
    def children(self, model: str) -> Iterator[dict[str, Child]]:
        """Give every engine with this model loaded; who fails to load is among the missing."""
        with ExitStack() as stack:
            found: dict[str, Child] = {}
            own = Peer(OWN, "run_own.py")
            for peer in (own, *(PEERS[name] for name in self._pythons)):
                try:
                    found[peer.name] = self._child(stack, peer, model)
                    self._missing.pop(peer.name, None)  # as it may be with another model
                except BackendUnavailable as error:
                    if peer is own:
                        raise
                    self._missing[peer.name] = error.message
                    self.tell(error.message)
            yield found

    def _child(self, stack: ExitStack, peer: Peer, model: str) -> Child:
        self.tell(f"{peer.name} loads {model}")
        python = self._pythons.get(peer.name, sys.executable)
        log = self.cache / f"{peer.name}.log"
        command = [python, str(self.scripts / peer.script)]
        child = Child(peer.name, command, log, self.threads)
        stack.callback(child.close)
        try:
            about = child.ask(
                "load", self.load_limit, model=str(self.model(model)), threads=self.threads
            )
        except BackendUnavailable:
            child.close()  # it may still be compiling, beside the others' rounds
            raise
        if peer.label:
            about["note"] = f"{peer.label}; {about['note']}"
        self.store.found["engines"][peer.name] = about
        return child

    def run(self, cases: Sequence[Case], parts: Sequence[str]) -> None:
        """Run what is not in the store yet.

        Raises:
            BackendUnavailable: our own engine failed.
        """
        for model in SHAPES:
            wanted = [case for case in cases if case.model == model]
            wanted = [case for case in wanted if not self.store.has(case.name)]
            if wanted:
                with self.children(model) as engines:
                    self._limits(engines[OWN])
                    for case in wanted:
                        self._case(case, engines)
        for name in parts:
            if not self.store.has(name):
                self._part(name)

    def _limits(self, own: Child) -> None:
        if "limits" not in self.store.found:
            self.tell("probing memory and arithmetic")
            self.store.found["limits"] = own.ask("probe")

    def _case(self, case: Case, engines: dict[str, Child]) -> None:
        batch = case.batch * (case.context + case.room)
        config = shape(case.model)
        room = psutil.virtual_memory().available - 2**30
        kv = batch * config.kv_bytes_per_token("bfloat16")
        if kv > 0.8 * room:
            self.tell(f"{case.name}: left out, keys and values of {kv / 2**30:.1f} GiB do not fit")
            return
        together = kv * len(engines) < 0.8 * room
        load = os.getloadavg()[0]
        timings = run_case(case, engines, tell=self.tell, together=together)
        timings.failed.update(
            {name: why for name, why in self._missing.items() if name not in timings.failed}
        )
        if timings.failed.get(OWN):
            raise BackendUnavailable(timings.failed[OWN], remedy="Mend it: it is our own engine.")
        for name in timings.failed:  # it may be in any state
            if name in engines:
                engines.pop(name).close()
                self._missing[name] = timings.failed[name]
        limits = Limits(**self.store.found["limits"])
        own = statistics.median(timings.seconds[OWN])
        row = make_row(case, timings, limits.bound(*needs(config, case), own))
        self.store.add({**row, "load": round(load, 2)})
        self.tell(f"{case.name}: {row['tokens_per_second']} beside {row['peers']}")

    # --- our own numbers ------------------------------------------------------------------------

    def _part(self, name: str) -> None:
        """Measure a part and keep it; what cannot be measured here is kept with the reason."""
        self.tell(f"measuring: {PARTS[name].what}")
        try:
            value, more = self._measure(name)
        except BackendUnavailable as error:
            part = PARTS[name]
            entry = part.judge(0.0) | {"value": None, "met": None, "why": error.message}
        else:
            entry = PARTS[name].judge(value, **more)
        self.store.note(name, entry)
        self.tell(f"{PARTS[name].what}: {entry['value']} ({PARTS[name].unit})")

    def _measure(self, name: str) -> tuple[float, dict[str, Any]]:
        if name == "drafting":
            return self._drafting()
        if name == "streaming":
            return self._streaming()
        if name.startswith("bandwidth-"):
            return self._bandwidth(name.removeprefix("bandwidth-"))
        with ExitStack() as stack:
            own = self._child(stack, Peer(OWN, "run_own.py"), "m135")
            if name == "neighbour":
                return _neighbour(own)
            if name == "second-turn":
                return _second_turn(own)
            answer = own.ask("part", name=name)
        if name == "attention":
            return min(answer.values()), {"by_model": answer}
        if name == "host":
            return sum(answer.values()), {"by_part": answer}
        return answer["share"], {"page_tokens": 16}

    def _bandwidth(self, model: str) -> tuple[float, dict[str, Any]]:
        name = f"decode-{model}-1x512"
        for row in self.store.found["rows"]:
            if row["name"] == name:
                return float(row["of_bandwidth"]), {"of_row": name}
        raise BackendUnavailable(f"it is taken from the row {name}, which was not run", remedy="")

    def _drafting(self) -> tuple[float, dict[str, Any]]:
        if self.sessions is None:
            raise BackendUnavailable("no --sessions were given", remedy="")
        told = _command("draft", str(self.sessions))
        every = told["rows"][-1]
        return every["fewer"], {"acceptance": round(every["acceptance"], 3)}

    def _streaming(self) -> tuple[float, dict[str, Any]]:
        told = _command(
            "streaming", "--dtype", "bfloat16", "--model", str(self.model("m135")), "--quiet"
        )
        return told["plain"] / told["streamed"], {"seconds": [told["plain"], told["streamed"]]}


def _command(*words: str) -> dict[str, Any]:
    """Return what a bench command prints.

    Raises:
        BackendUnavailable: there is no such command, or it failed.
    """
    command = [sys.executable, "-m", "agentrt", "bench", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900.0)
    if done.returncode:
        last = (done.stderr.strip() or "no word").splitlines()[-1].strip("│ ")
        raise BackendUnavailable(f"`agentrt bench {words[0]}` failed: {last}", remedy="")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _second_turn(own: Child, prefix: int = 7500, new: int = 256) -> tuple[float, dict[str, Any]]:
    """Return how many times sooner a turn on a cached prefix answers; median of three pairs."""
    vocabulary = shape("m135").vocab_size
    pairs = [
        own.ask("again", prefix=prefix, new=new, vocabulary=vocabulary, seed=seed)
        for seed in range(3)
    ]
    ratios = [pair["cold"] / pair["warm"] for pair in pairs]
    return statistics.median(ratios), {"model": "m135", "pairs": pairs}


def _neighbour(own: Child, bursts: int = 12, steps: int = 12) -> tuple[float, dict[str, Any]]:
    """Return the median step beside a process that never rests over the median quiet step.

    The first half of each is the thread tuner's, to find out.
    """
    own.ask("start", seed=random.Random(SEED).randrange(1000), batch=1, context=512, room=600)

    def step() -> float:
        rounds = [own.ask("steps", count=steps)["seconds"] for _ in range(bursts)]
        late: list[float] = rounds[bursts // 2 :]
        return 1e3 * statistics.median(late) / steps

    quiet = step()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        loud = step()
    finally:
        busy.kill()
        busy.wait()
    own.ask("stop")
    return loud / quiet, {"model": "m135", "quiet_ms": round(quiet, 2), "busy_ms": round(loud, 2)}
