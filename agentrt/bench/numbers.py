"""The scheduling targets, each measured by bench commands: what is run, and how it is judged.

A row runs one or more ``agentrt bench`` commands, whose output directories it shares with other
rows, so that nothing is computed twice and a second run goes on where the first was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentrt.errors import ConfigError

__all__ = ["Bench", "Finding", "Row", "rows", "shown"]

Results: TypeAlias = Mapping[str, Any]
Kind: TypeAlias = Literal["capacity", "compare"]

OURS = "agentrt"
SERVER = "fcfs"


@dataclass(frozen=True, slots=True)
class Bench:
    """One ``agentrt bench`` command without its output directory, ``name``."""

    name: str
    kind: Kind
    workload: str
    options: tuple[str, ...]

    def argv(self) -> list[str]:
        """Return the command's words after ``agentrt``."""
        engine = ["--engine", "simulated"] if self.kind == "compare" else []
        return ["bench", self.kind, self.workload, *engine, *self.options]


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure beside its target. ``met`` compares ``value`` with ``target``."""

    what: str
    value: float | None
    target: float
    at_least: bool
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the target is reached; False where nothing was found."""
        if self.value is None:
            return False
        return self.value >= self.target if self.at_least else self.value <= self.target

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "what": self.what,
            "value": self.value,
            "target": self.target,
            "at_least": self.at_least,
            "met": self.met,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """Some of the targets: the commands that they need, and what is read from their results."""

    name: str
    benches: tuple[Bench, ...]
    judge: Callable[[Mapping[str, Results]], list[Finding]]


def rows(workload: str, mooncake: str | None, seeds: int) -> list[Row]:
    """Return every row.

    Args:
        workload: the file of coding-agent programs.
        mooncake: a trace whose arrivals are used, or None to leave that row out.
        seeds: arrival patterns for each.
    """
    every = ("--seeds", str(seeds))
    found = [
        _capacity_row(workload, every),
        *(_gap_row(workload, every, *change) for change in GAPS),
        _told_row(workload, every),
        _host_row(workload, every),
        _pressure_row(workload, every),
        _bound_row(workload, every),
        _first_turn_row(workload, every),
        _kept_row(workload, every),
        _idle_row(workload, every),
        *(_shape_row(*change, every) for change in _shapes(workload)),
        _deadline_row(every),
    ]
    if mooncake is not None:
        # They come ten at a time, so that at no rate a P90 slowdown of 2 is kept by anything.
        arrivals = ("--arrivals", f"mooncake:{mooncake}", "--slowdown", "4")
        found.append(_gap_row(workload, every, "arrivals-mooncake", arrivals, (30, 60, 120)))
    return found


def shown(chosen: Sequence[Row], names: str | None) -> list[Row]:
    """Return the rows of a comma-separated list of names, or all.

    Raises:
        ConfigError: there is no such row.
    """
    if names is None:
        return list(chosen)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {row.name: row for row in chosen}
    if missing := [name for name in wanted if name not in known]:
        raise ConfigError(f"There is no row {missing[0]!r}.", remedy=f"Use: {', '.join(known)}.")
    return [known[name] for name in wanted]


# --- capacity -------------------------------------------------------------------------------------

SMALL, MIDDLE = "250000", "490000"
GAPS: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    ("gaps-short", ("--gap-scale", "0.2"), (5, 15, 60)),
    ("gaps-long", ("--gap-scale", "5"), (30, 120, 300)),
    ("gaps-even", ("--gap-cv", "0.5"), (15, 30, 60)),
    ("gaps-uneven", ("--gap-cv", "3"), (15, 60, 120)),
)


def _capacity(name: str, workload: str, policies: str, pools: str, *options: str) -> Bench:
    return Bench(name, "capacity", workload, ("--policies", policies, "--pools", pools, *options))


def _swept(seconds: Sequence[int]) -> str:
    return ",".join((OURS, *(f"fixed-ttl={each}" for each in seconds)))


def _base(workload: str, every: tuple[str, ...]) -> Bench:
    policies = f"{_swept((30, 60, 120))},{SERVER}"
    return _capacity("capacity", workload, policies, f"{MIDDLE},{SMALL}", *every)


def _rate(results: Results, pool: str, policy: str) -> float:
    return float(results["pools"][pool][policy]["rate"])


def _best_fixed(results: Results, pool: str) -> float:
    found = results["pools"][pool]
    return max(float(one["rate"]) for name, one in found.items() if name.startswith("fixed-ttl"))


def _capacity_row(workload: str, every: tuple[str, ...]) -> Row:
    base = _base(workload, every)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        told = results[base.name]
        return [
            Finding(
                f"highest rate, pool {int(pool):,}, to {SERVER}",
                _rate(told, pool, OURS) / _rate(told, pool, SERVER),
                target,
                at_least=True,
                detail=told["pools"][pool],
            )
            for pool, target in ((SMALL, 3.0), (MIDDLE, 2.2))
        ] + _beside_fixed("highest rate", told, 1.0)

    return Row("capacity", (base,), judge)


def _beside_fixed(what: str, results: Results, target: float) -> list[Finding]:
    return [
        Finding(
            f"{what}, pool {int(pool):,}, to the best fixed TTL",
            _rate(results, pool, OURS) / _best_fixed(results, pool),
            target,
            at_least=True,
            detail=results["pools"][pool],
        )
        for pool in (SMALL, MIDDLE)
    ]


def _gap_row(
    workload: str,
    every: tuple[str, ...],
    name: str,
    options: tuple[str, ...],
    sweep: Sequence[int],
) -> Row:
    pools = f"{MIDDLE},{SMALL}"
    bench = _capacity(name, workload, _swept(sweep), pools, *options, *every)
    return Row(
        name, (bench,), lambda results: _beside_fixed(f"highest rate, {name}", results[name], 1.0)
    )


def _told_row(workload: str, every: tuple[str, ...]) -> Row:
    base = _base(workload, every)
    pools = f"{MIDDLE},{SMALL}"
    told = _capacity("told-turns", workload, OURS, pools, "--tell-turns", *every)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        return [
            Finding(
                f"highest rate where programs tell their turns, pool {int(pool):,}, "
                "to the best fixed TTL",
                _rate(results[told.name], pool, OURS) / _best_fixed(results[base.name], pool),
                1.1,
                at_least=True,
                detail=results[told.name]["pools"][pool],
            )
            for pool in (SMALL, MIDDLE)
        ]

    return Row("told-turns", (base, told), judge)


def _host_row(workload: str, every: tuple[str, ...]) -> Row:
    tier = ("--host-pool", "8000000")
    host = _capacity("host-tier", workload, OURS, f"{MIDDLE},{SMALL}", *tier, *every)
    endless = _capacity("endless-pool", workload, f"{OURS},{SERVER}", "20000000", *every)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        most = max(_rate(results[endless.name], "20000000", one) for one in (OURS, SERVER))
        return [
            Finding(
                f"highest rate with a host tier, pool {int(pool):,}, to an endless pool",
                _rate(results[host.name], pool, OURS) / most,
                0.95,
                at_least=True,
                detail=results[host.name]["pools"][pool],
            )
            for pool in (SMALL, MIDDLE)
        ]

    return Row("host-tier", (host, endless), judge)


# --- comparisons ----------------------------------------------------------------------------------


def _compare(name: str, workload: str, policies: str, *options: str) -> Bench:
    return Bench(name, "compare", workload, ("--policies", policies, *options))


def _of(results: Results, policy: str, figure: str) -> float:
    return float(results["policies"][policy][figure])


def _pressure_row(workload: str, every: tuple[str, ...]) -> Row:
    others = "fixed-ttl=15,fixed-ttl=30,fixed-ttl=60,fixed-ttl=120,thunder"
    policies = f"{OURS},{SERVER},{others},belady,true-ttl"
    bench = _compare("pressure", workload, policies, "--pool", MIDDLE, "--rate", "0.02", *every)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        told = results[bench.name]
        ours = _of(told, OURS, "jct_mean")
        best = min(_of(told, name, "jct_mean") for name in others.split(","))
        return [
            Finding(
                f"mean completion time at 0.02/s, {SERVER} over {OURS}",
                _of(told, SERVER, "jct_mean") / ours,
                10.0,
                at_least=True,
            ),
            Finding("the same, to the best other", ours / best, 1.0, at_least=False),
        ]

    return Row("pressure", (bench,), judge)


def _bound_row(workload: str, every: tuple[str, ...]) -> Row:
    shared = ("--pool", MIDDLE, "--rate", "0.02", *every)
    bound = _compare("bound-120", workload, f"{OURS},fixed-ttl=60", "--max-wait", "120", *shared)
    free = _compare("bound-none", workload, f"{OURS},fixed-ttl=60", "--max-wait", "inf", *shared)
    server = _compare("pressure-server", workload, SERVER, *shared)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        mean = _of(results[bound.name], OURS, "jct_mean")
        plain = _of(results[bound.name], "fixed-ttl=60", "jct_mean")
        return [
            Finding(
                f"longest wait with max_wait 120 s, to {SERVER}",
                _of(results[bound.name], OURS, "longest_wait")
                / _of(results[server.name], SERVER, "longest_wait"),
                0.6,
                at_least=False,
            ),
            Finding(
                "mean completion time there, to that without a bound",
                mean / _of(results[free.name], OURS, "jct_mean"),
                1.1,
                at_least=False,
                detail={
                    "fixed-ttl=60": plain / _of(results[free.name], "fixed-ttl=60", "jct_mean")
                },
            ),
        ]

    return Row("bound", (bound, free, server), judge)


def _first_turn_row(workload: str, every: tuple[str, ...]) -> Row:
    # 0.9 times what fcfs serves at the most, in the capacity row.
    rate = ("--pool", MIDDLE, "--rate", "0.0071", *every)
    bench = _compare("first-turn", workload, f"{OURS},{SERVER}", *rate)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        told = results[bench.name]
        return [
            Finding(
                f"first turn's P99 time to first token at 0.9 of {SERVER}'s highest rate, "
                f"to {SERVER}",
                _of(told, OURS, "ttft_first_p99") / _of(told, SERVER, "ttft_first_p99"),
                1.0,
                at_least=False,
            )
        ]

    return Row("first-turn", (bench,), judge)


WORKING_SET_RATE = "0.0165"
WORKING_SET_SHARES = (("250000", 0.3), ("415000", 0.5), ("580000", 0.7), ("830000", 1.0))
"""Pools, and about what share they are of the most that programs hold at once at that rate."""


def _kept_row(workload: str, every: tuple[str, ...]) -> Row:
    benches = {
        share: _compare(
            f"kept-{share}", workload, OURS, "--pool", pool, "--rate", WORKING_SET_RATE, *every
        )
        for pool, share in WORKING_SET_SHARES
    }

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        return [
            Finding(
                f"prefilled tokens, pool {share:g} of the working set, to the cost oracle",
                _of(results[bench.name], OURS, "kept_ratio"),
                1.15,
                at_least=False,
            )
            for share, bench in benches.items()
        ]

    return Row("kept", tuple(benches.values()), judge)


def _idle_row(workload: str, every: tuple[str, ...]) -> Row:
    bench = _compare(
        "low-pressure",
        workload,
        f"{OURS},{SERVER}",
        *("--pool", "1300000", "--rate", WORKING_SET_RATE, *every),
    )

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        told = results[bench.name]
        return [
            Finding(
                f"low pressure (pool 1.5 of the working set): {figure}, to {SERVER}",
                _of(told, OURS, figure) / _of(told, SERVER, figure),
                1.01,
                at_least=False,
            )
            for figure in ("jct_mean", "slowdown_p90")
        ]

    return Row("low-pressure", (bench,), judge)


def _shapes(workload: str) -> list[tuple[str, str, tuple[str, ...]]]:
    pressed = ("--pool", MIDDLE, "--rate", "0.0165")
    return [
        ("twice-the-turns", workload, ("--turn-factor", "2", *pressed)),
        ("sub-agents", "synthetic:subagents", ("--pool", "250000", "--rate", "0.06")),
        ("branches", "synthetic:branches", ("--pool", "250000", "--rate", "0.06")),
    ]


def _shape_row(name: str, workload: str, options: tuple[str, ...], every: tuple[str, ...]) -> Row:
    bench = _compare(name, workload, f"{OURS},program-fcfs", *options, *every)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        told = results[bench.name]
        ratio = _of(told, OURS, "jct_mean") / _of(told, "program-fcfs", "jct_mean")
        what = f"{name}: mean completion time, to program-fcfs"
        return [Finding(what, ratio, 1.0, at_least=False)]

    return Row(name, (bench,), judge)


def _deadline_row(every: tuple[str, ...]) -> Row:
    tenants = "synthetic:ten-tenants?load=0.02&minutes=80"
    # Every policy serves 0.020 programs a second of this workload at P90 slowdown 2.
    options = ("--pool", MIDDLE, "--rate", "0.016", "--deadline", "1.5", *every)
    bench = _compare("deadlines", tenants, f"slo,{OURS},{SERVER}", *options)

    def judge(results: Mapping[str, Results]) -> list[Finding]:
        told = results[bench.name]
        names = ("slo", OURS, SERVER)
        best = max(_of(told, name, "deadlines_met") for name in names)
        detail = {name: _of(told, name, "deadlines_met") for name in names}
        what = "deadlines of 1.5 times the time alone met at 80 % load, ten tenants, best policy"
        return [Finding(what, best, 0.99, at_least=True, detail=detail)]

    return Row("deadlines", (bench,), judge)
