"""Pipelines of Python functions: data dependencies, conditions, retries, resume, replay."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import pytest

from agentrt.errors import GuideError
from agentrt.workflows.executor_context import StepFailure
from agentrt.workflows.log import RunLog
from agentrt.workflows.python import Pipeline, after, step
from agentrt.workflows.python_values import decode, encode
from agentrt.workflows.run import GuideRunner

REGIONS = ("eu", "us", "asia")


@dataclass
class Count:
    region: str
    errors: int


@pytest.fixture
def log(tmp_path):
    with RunLog(tmp_path / "runs.db") as opened:
        yield opened


class Calls:
    """Notes calls."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def note(self, name: str) -> None:
        self.seen.append(name)


def fan_out(calls: Calls, *, stuck: anyio.Event | None = None) -> Pipeline:
    @step
    async def fetch(region: str, scale: int = 1) -> Count:
        calls.note(f"fetch {region}")
        return Count(region, len(region) * scale)

    fetches = [fetch.bind(f"fetch_{region}", region=region) for region in REGIONS]

    @step
    async def judge(counts: list[Count]) -> str:
        calls.note("judge")
        if stuck is not None and not stuck.is_set():
            await anyio.sleep(60)
        return max(counts, key=lambda count: count.errors).region

    @step
    def report(judge: str, note: str = "") -> dict[str, str]:
        calls.note("report")
        return {"worst": judge, "note": note}

    bound = judge.bind("judge", counts=fetches)
    return Pipeline("errors", [*fetches, bound, report])


@pytest.mark.anyio
async def test_fan_out_and_join(log) -> None:
    calls = Calls()
    pipeline = fan_out(calls)
    outcome = await pipeline.runner(log).run(pipeline.parameters(scale=2, note="now"))
    assert (outcome.status, outcome.path[-2:]) == ("succeeded", ("judge", "report"))
    value = pipeline.value("report", outcome.results["report"])
    assert value == {"worst": "asia", "note": "now"}
    assert pipeline.value("fetch_eu", outcome.results["fetch_eu"]) == Count("eu", 4)
    assert sorted(calls.seen[:3]) == ["fetch asia", "fetch eu", "fetch us"]
    assert pipeline.plan.width() == 3


@pytest.mark.anyio
async def test_an_interrupted_pipeline_resumes_without_repeating_what_finished(log) -> None:
    calls, free = Calls(), anyio.Event()
    pipeline = fan_out(calls, stuck=free)

    def stop(event) -> None:
        if event.kind == "step_started" and event.step == "judge":
            scope.cancel()

    with anyio.CancelScope() as scope:
        await pipeline.runner(log, on_event=stop).run(pipeline.parameters(), run_id="r")
    assert scope.cancelled_caught
    assert log.events("r")[-1].kind != "run_ended"
    before = [name for name in calls.seen if name != "judge"]
    free.set()
    outcome = await pipeline.runner(log).resume("r")
    assert outcome.status == "succeeded"
    assert [name for name in calls.seen if name.startswith("fetch")] == before
    again = list(calls.seen)
    assert (await pipeline.runner(log).resume("r")).results == outcome.results
    replayed = await pipeline.runner(log).replay("r")
    assert (replayed.attempts, replayed.calls) == (5, 5)
    assert calls.seen == again


def branching(value: int) -> Pipeline:
    @step
    def measure() -> int:
        return value

    @step(after=[after(measure, when=lambda found: found > 10)])
    def high() -> str:
        return "high"

    @step(after=[after(measure, when="result < 0")])
    def low() -> str:
        return "low"

    @step(after=[after(measure, otherwise=True)])
    def normal() -> str:
        return "normal"

    @step
    def say(high: str | None = None, low: str | None = None, normal: str | None = None) -> str:
        return high or low or normal or "nothing"

    return Pipeline("branches", [measure, high, low, normal, say])


@pytest.mark.anyio
@pytest.mark.parametrize(("value", "said"), [(11, "high"), (-1, "low"), (5, "normal")])
async def test_conditions_choose_the_branch(log, value, said) -> None:
    pipeline = branching(value)
    outcome = await pipeline.runner(log).run()
    assert pipeline.value("say", outcome.results["say"]) == said
    assert outcome.path == ("measure", said, "say")
    decided = {
        e.data["edge"]: e.data for e in log.events(outcome.run_id) if e.kind == "edge_decided"
    }
    by = {decided[f"edge_measure_{name}"]["by"] for name in ("high", "low")}
    assert by == {"code"}


@pytest.mark.anyio
async def test_a_failing_function_is_retried_and_then_failed(log) -> None:
    tries = []

    @step(retries=1)
    def flaky() -> int:
        tries.append(1)
        if len(tries) < 2:
            raise ValueError("not yet")
        return len(tries)

    @step(retries=0)
    def broken(flaky: int) -> int:
        raise KeyError("gone")

    pipeline = Pipeline("retries", [flaky, broken])
    outcome = await pipeline.runner(log).run()
    assert (outcome.status, outcome.path, len(tries)) == ("failed", ("flaky",), 2)
    errors = [e.data["error"] for e in log.events(outcome.run_id) if e.data.get("error")]
    assert any("KeyError: 'gone'" in error for error in errors)


@pytest.mark.anyio
async def test_a_function_that_takes_too_long_times_out(log) -> None:
    @step(timeout=0.1, retries=0)
    async def slow() -> None:
        await anyio.sleep(60)

    outcome = await Pipeline("slow", [slow]).runner(log).run()
    assert (outcome.status, outcome.steps["slow"]) == ("failed", "timed_out")


@pytest.mark.anyio
async def test_results_are_checked(log) -> None:
    @step(retries=0)
    def wrong() -> int:
        return "three"

    @step(retries=0)
    def strange() -> object:
        return object()

    outcome = await Pipeline("wrong", [wrong, strange]).runner(log).run()
    assert outcome.status == "failed"
    assert outcome.steps["strange"] == outcome.steps["wrong"] == "failed"


def test_a_step_is_called_like_the_function_it_is() -> None:
    @step
    def double(value: int) -> int:
        """Twice."""
        return 2 * value

    assert double(4) == double.bind("other", value=1)(4) == 8
    assert double.__doc__ == "Twice."


def test_wrong_pipelines_are_refused() -> None:
    @step
    def one(two: int) -> int:
        return two

    @step
    def two(one: int) -> int:
        return one

    with pytest.raises(GuideError, match="cycle"):
        Pipeline("loop", [one, two])
    with pytest.raises(GuideError, match="names of their own"):
        Pipeline("twice", [one, one])
    with pytest.raises(GuideError, match="not a step of the pipeline"):
        Pipeline("unknown", [step(after=[after("nobody")])(lambda: 1)])


@pytest.mark.anyio
async def test_inputs_are_checked(log) -> None:
    @step
    def need(count: int) -> int:
        return count

    runner: GuideRunner = Pipeline("inputs", [need]).runner(log)
    with pytest.raises(GuideError, match="count is missing"):
        await runner.run()
    with pytest.raises(GuideError, match="other is unknown"):
        await runner.run({"count": "1", "other": "2"})


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ([Count("eu", 1)], list[Count]),
        ({"a": Count("eu", 1)}, dict[str, Count]),
        ((1, "a"), tuple[int, str]),
        (None, Count | None),
        ({1, 2}, set[int]),
        (1.5, float),
    ],
)
def test_values_come_back_as_they_were(value, annotation) -> None:
    assert decode(encode(value, annotation), annotation) == value


@pytest.mark.parametrize("value", [object(), b"x", {1: 2}])
def test_values_that_the_log_cannot_keep_are_refused(value) -> None:
    with pytest.raises(StepFailure):
        encode(value)
