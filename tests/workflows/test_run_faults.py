"""Whatever breaks, a run ends in a named state, or says why it stopped and can be resumed."""

from __future__ import annotations

import threading

import anyio
import anyio.to_thread
import pytest

from agentrt.workflows.executor import ExecutorOptions, StepExecutor
from agentrt.workflows.executor_context import StepOutcome
from agentrt.workflows.guide import Edge, Guide, QueryUse, Retry, Step, StepPolicy
from agentrt.workflows.log import LogFull, RunBusy, RunLog, fold
from agentrt.workflows.models import ModelFailure, ScriptedModel
from agentrt.workflows.models_http import HttpModel, HttpOptions
from agentrt.workflows.plan import make_plan
from agentrt.workflows.queries import QueryTemplates, QueryTimeout
from agentrt.workflows.run import GuideRunner, RunOptions
from agentrt.workflows.schedule import ScheduleConfig
from tests.workflows.test_models import answer, cut, hang, raw, served

QUICK = StepPolicy(timeout=20.0, retry=Retry(attempts=2, initial=0.01))


def guide(policy: StepPolicy = QUICK, condition: str = "it is broken", **more) -> Guide:
    """Two steps, with a prose condition between them."""
    first = Step(
        "Step1",
        "First",
        edges=(
            Edge("go", "Step1", "Step2", condition=condition),
            Edge("stop", "Step1", "end", otherwise=True),
        ),
        policy=policy,
        **more,
    )
    second = Step("Step2", "Second", edges=(Edge("done", "Step2", "end"),), policy=policy)
    return Guide("faults", "Faults", (first, second))


class Fake:
    """An executor that does as it is told for Step1, and succeeds for others."""

    name = "fake"

    def __init__(self, act) -> None:
        self.act = act
        self.attempts = 0

    async def run(self, step, edges, context) -> StepOutcome:
        if step.id != "Step1":
            return StepOutcome({"findings": "fine"}, {edge.name: "enabled" for edge in edges})
        self.attempts += 1
        return await self.act(context)


@pytest.fixture
def log(tmp_path):
    with RunLog(tmp_path / "runs.db") as opened:
        yield opened


async def ended(log, executor, made: Guide | None = None, **options):
    """Run to the end; check that the log's fold is what came out; return outcome and errors."""
    plan = make_plan(made or guide())
    runner = GuideRunner(plan, log=log, executor=executor, **options)
    with anyio.fail_after(60):
        outcome = await runner.run(run_id="r")
    events = log.events("r")
    assert events[-1].kind == "run_ended"
    assert fold(plan, events).status == outcome.status != "running"
    return outcome, [str(e.data["error"]) for e in events if e.data.get("error")]


def edges_of(**states):
    async def act(context) -> StepOutcome:
        return StepOutcome({"findings": ""}, states)

    return act


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"go": "enabled", "stop": "disabled", "leap": "enabled"}, "invented: leap"),
        ({"go": "enabled"}, "left out: stop"),
        ({"go": "Enabled", "stop": "disabled"}, "not a state"),
        ({}, "left out"),
    ],
)
async def test_edges_that_are_invented_omitted_or_misspelt(log, states, said) -> None:
    fake = Fake(edges_of(**states))
    outcome, errors = await ended(log, fake)
    assert (outcome.status, outcome.steps["Step1"], fake.attempts) == ("failed", "failed", 2)
    assert all(said in error for error in errors)
    assert errors


def raising(error: BaseException):
    async def act(context) -> StepOutcome:
        raise error

    return act


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        MemoryError("too much"),
        OSError(28, "No space left on device"),
        ModelFailure("rate_limited", "Too fast.", remedy="Wait."),
        RecursionError("deep"),
    ],
)
async def test_a_worker_that_dies_of_an_exception(log, error) -> None:
    fake = Fake(raising(error))
    outcome, errors = await ended(log, fake)
    assert (outcome.status, fake.attempts) == ("failed", 2)
    assert all(type(error).__name__ in text or "Too fast" in text for text in errors)


@pytest.mark.anyio
async def test_a_worker_that_returns_nothing(log) -> None:
    async def act(context) -> None:
        return None

    fake = Fake(act)
    outcome, _ = await ended(log, fake)
    assert (outcome.status, fake.attempts) == ("failed", 2)


@pytest.mark.anyio
@pytest.mark.parametrize("result", [{"x": object()}, {"x": "y" * 200_000}, {"x": float("nan")}])
async def test_results_that_cannot_be_kept(log, result) -> None:
    async def act(context) -> StepOutcome:
        return StepOutcome(result, {"go": "enabled", "stop": "disabled"})

    outcome, errors = await ended(log, Fake(act))
    assert outcome.steps["Step1"] == "failed"
    assert all("result" in error for error in errors)


@pytest.mark.anyio
async def test_a_step_that_hangs_is_stopped_by_its_timeout(log) -> None:
    async def act(context) -> StepOutcome:
        await anyio.sleep(60)
        raise AssertionError("not reached")

    policy = StepPolicy(timeout=0.05, retry=Retry(attempts=2, initial=0.01))
    outcome, errors = await ended(log, Fake(act), guide(policy))
    assert (outcome.status, outcome.steps["Step1"]) == ("failed", "timed_out")
    assert all("timeout" in error for error in errors)


@pytest.mark.anyio
async def test_a_thread_that_never_ends_does_not_hold_the_run(log) -> None:
    free = threading.Event()

    async def act(context) -> StepOutcome:
        await anyio.to_thread.run_sync(free.wait, 30, abandon_on_cancel=True)
        raise AssertionError("not reached")

    policy = StepPolicy(timeout=0.05, retry=Retry(attempts=1))
    outcome, _ = await ended(log, Fake(act), guide(policy))
    free.set()
    assert outcome.steps["Step1"] == "timed_out"


@pytest.mark.anyio
async def test_a_step_that_cannot_be_stopped_is_written_off(log) -> None:
    async def act(context) -> StepOutcome:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.4)
        return StepOutcome({"findings": "late"}, {"go": "enabled", "stop": "disabled"})

    policy = StepPolicy(timeout=0.05, retry=Retry(attempts=3, initial=0.01))
    options = RunOptions(schedule=ScheduleConfig(grace=0.05))
    fake = Fake(act)
    outcome, errors = await ended(log, fake, guide(policy), options=options)
    assert (outcome.steps["Step1"], fake.attempts) == ("timed_out", 1)
    assert "could not be stopped" in errors[0]


@pytest.mark.anyio
@pytest.mark.parametrize("said", ["leap", "Enabled", "", '{"go": "enabled"}'])
async def test_a_model_that_decides_nonsense(log, said) -> None:
    def script(messages, choices, context):
        return "Findings." if choices is None else said

    made = guide()
    executor = StepExecutor(
        made, model=ScriptedModel(script), options=ExecutorOptions(ask_person=False)
    )
    outcome, errors = await ended(log, executor, made)
    assert (outcome.status, outcome.steps["Step1"]) == ("failed", "failed")
    assert all("not a state" in error for error in errors)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (raw(429, b"slow"), "429"),
        (raw(500, b"oops"), "500"),
        (raw(200, b'{"choices": ['), "cut or broken"),
        (answer("perhaps"), "gave no answer"),
        (cut, "broke off"),
        (hang, "did not answer"),
    ],
)
async def test_a_model_behind_a_url_that_misbehaves(log, behaviour, said) -> None:
    made = guide()
    options = HttpOptions(timeout=0.3, attempts=2, asks=2, initial_wait=0.01)
    # The findings are fine; what is asked next, about the edge, is not.
    calls = [answer("Findings."), behaviour, behaviour, behaviour, behaviour]
    with served(*calls) as server:
        model = HttpModel(server.url, "m", options=options)
        executor = StepExecutor(made, model=model, options=ExecutorOptions(ask_person=False))
        outcome, errors = await ended(log, executor, made)
        await model.aclose()
    assert outcome.status == "failed"
    assert said in errors[0]


@pytest.mark.anyio
async def test_a_query_that_hangs_is_told_to_stop(log, tmp_path) -> None:
    told = []

    class Hanging(QueryTemplates):
        def run(self, bound, *, cancelled=None, **more):
            told.append(cancelled.wait(30))
            raise QueryTimeout("It was stopped.", remedy="Ask for less.")

    text = '[source.s]\ntype = "sqlite"\npath = "x.db"\n[query.q]\nsource = "s"\nsql = "SELECT 1"\n'
    parsed = QueryTemplates.parse(text, path=str(tmp_path / "q.toml"))
    from agentrt.workflows.data import DataStore

    policy = StepPolicy(timeout=0.1, retry=Retry(attempts=1))
    made = guide(policy, queries=(QueryUse("q"),))
    with DataStore(tmp_path / "data") as store:
        templates = Hanging(parsed.sources, parsed.queries)
        executor = StepExecutor(made, templates=templates, store=store)
        outcome, _ = await ended(log, executor, made)
        for _ in range(200):
            if told:
                break
            await anyio.sleep(0.05)
    assert outcome.steps["Step1"] == "timed_out"
    assert told == [True]


@pytest.mark.anyio
@pytest.mark.parametrize("room", range(0, 78, 6))
async def test_a_full_disk_stops_the_run_by_name_and_it_is_resumed_later(tmp_path, room) -> None:
    """``room`` pages of 4 KiB are left when the run begins; it needs about 60."""
    plan = make_plan(guide())

    async def act(context) -> StepOutcome:
        return StepOutcome({"findings": "x" * 100_000}, {"go": "enabled", "stop": "disabled"})

    with RunLog(tmp_path / "runs.db") as log:
        pages = log._db.execute("PRAGMA page_count").fetchone()[0]
        log._db.execute(f"PRAGMA max_page_count = {pages + room}")
        try:
            outcome = await GuideRunner(plan, log=log, executor=Fake(act)).run(run_id="r")
        except LogFull as full:
            outcome = None
            remedy = full.remedy
        log._db.execute("PRAGMA max_page_count = 100000")
        if room == 0 or room >= 72:
            assert (outcome is None) == (room == 0)
        if outcome is None:
            assert "resume" in remedy
            begun = bool(log.runs()) and bool(log.events("r"))
            again = GuideRunner(plan, log=log, executor=Fake(act))
            outcome = await (again.resume("r") if begun else again.run(run_id="other"))
        assert outcome.ok
        events = log.events(outcome.run_id)
        assert [e.index for e in events] == list(range(len(events)))


@pytest.mark.anyio
async def test_two_resumes_at_once_are_one(log, tmp_path) -> None:
    plan = make_plan(guide())
    begun, free = anyio.Event(), anyio.Event()

    async def act(context) -> StepOutcome:
        begun.set()
        await free.wait()
        return StepOutcome({"findings": ""}, {"go": "enabled", "stop": "disabled"})

    fake = Fake(act)
    with anyio.fail_after(30):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: GuideRunner(plan, log=log, executor=fake).run(run_id="r"))
                await begun.wait()
                scope.cancel()
        begun = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(GuideRunner(plan, log=log, executor=fake).resume, "r")
            await begun.wait()
            with RunLog(tmp_path / "runs.db") as other, pytest.raises(RunBusy):
                await GuideRunner(plan, log=other, executor=fake).resume("r")
            free.set()
    assert log.events("r")[-1].data["status"] == "succeeded"
    assert fake.attempts == 2


@pytest.mark.anyio
async def test_a_broken_runner_ends_the_run(log, monkeypatch) -> None:
    from agentrt.errors import InternalError
    from agentrt.workflows.run_drive import Drive

    def broken(self, step, number) -> None:
        raise InternalError("It is broken.")

    monkeypatch.setattr(Drive, "_start", broken)
    outcome, _ = await ended(log, Fake(edges_of()))
    assert outcome.status == "failed"
    assert "It is broken" in outcome.reason


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("config", "status"),
    [
        (ScheduleConfig(wall_seconds=0.1), "timed_out"),
        (ScheduleConfig(budget_tokens=5), "failed"),
    ],
)
async def test_budgets_end_the_run(log, config, status) -> None:
    async def act(context) -> StepOutcome:
        if config.wall_seconds:
            await anyio.sleep(60)
        return StepOutcome({"findings": ""}, {"go": "enabled", "stop": "disabled"}, tokens=9)

    outcome, _ = await ended(log, Fake(act), options=RunOptions(schedule=config))
    assert outcome.status == status
