"""Runs of guides: queries, decisions, people, cancelling, fingerprints, forks, replays, the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import anyio
import pytest

from agentrt.errors import GuideError, InvalidRequest
from agentrt.workflows.data import DataStore
from agentrt.workflows.executor import ExecutorOptions, StepExecutor
from agentrt.workflows.log import RunBusy, RunLog
from agentrt.workflows.models import ScriptedModel
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.person import CallbackPerson, ScriptedPerson
from agentrt.workflows.plan import make_plan
from agentrt.workflows.queries import QueryTemplates
from agentrt.workflows.run import GuideRunner, RunOptions
from agentrt.workflows.run_drive import DriveConfig
from agentrt.workflows.schedule import ScheduleConfig

GUIDE = """# Long queues

## Parameters

- `limit` (integer, default 100): how long is too long

## Step 1 - Measure

### Instructions

Read the depths; more than {limit} is too long.

### Queries

- `depths`

### Connections

- if `max(depths.depth) > limit`: Step 2
- otherwise: Step 3

## Step 2 - Look for a deployment

### Instructions

Was there one?

### Connections

- if somebody deployed: Step 4
- otherwise: Step 3

## Step 3 - Nothing to do

### Instructions

Close it.

### Connections

- end

<!-- Reaches A Final Conclusion: All is well. -->

## Step 4 - Roll back

### Instructions

Do it.

### Connections

- end

### Policy

- gate: approve (default deny, after 10m)

<!-- Reaches A Final Conclusion: The deployment was rolled back. -->
"""

QUERIES = """
[source.telemetry]
type = "sqlite"
path = "telemetry.db"

[query.depths]
source = "telemetry"
sql = "SELECT queue, depth FROM depth ORDER BY queue"
"""


def script(messages, choices, context) -> str:
    return f"Findings of {context}." if choices is None else "enabled"


class Setting:
    """A folder with telemetry, a log and a store, and runners made in it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.log = RunLog(folder / "runs.db")
        self.store = DataStore(folder / "data")
        with sqlite3.connect(folder / "telemetry.db") as db:
            db.execute("CREATE TABLE depth (queue TEXT, depth INTEGER)")
            db.executemany("INSERT INTO depth VALUES (?, ?)", [("a", 10), ("b", 9000)])
        db.close()
        self.templates = QueryTemplates.parse(QUERIES, path=str(folder / "queries.toml"))

    def runner(self, *, guide=GUIDE, model=None, ask=True, **options) -> GuideRunner:
        parsed = parse_guide(guide, name="queues")
        executor = StepExecutor(
            parsed,
            templates=self.templates,
            store=self.store,
            model=model,
            options=ExecutorOptions(ask_person=ask),
        )
        log = options.pop("log", self.log)
        return GuideRunner(make_plan(parsed), log=log, executor=executor, **options)

    def kinds(self, run_id: str) -> list[str]:
        return [event.kind for event in self.log.events(run_id)]


@pytest.fixture
def setting(tmp_path):
    made = Setting(tmp_path)
    yield made
    made.log.close()
    made.store.close()


APPROVE = {"Step4/approve": "approve"}


@pytest.mark.anyio
async def test_a_whole_run(setting) -> None:
    seen = []
    person = ScriptedPerson(APPROVE)
    runner = setting.runner(
        model=ScriptedModel(script, tokens=11), person=person, on_event=seen.append
    )
    outcome = await runner.run(run_id="r")
    assert (outcome.status, outcome.path) == ("succeeded", ("Step1", "Step2", "Step4"))
    assert outcome.conclusion == "The deployment was rolled back."
    assert outcome.findings["Step1"] == "Findings of Step1."
    assert (outcome.tokens, outcome.steps["Step3"]) == (44, "skipped")
    assert seen == setting.log.events("r")
    decided = {e.data["edge"]: e.data["by"] for e in seen if e.kind == "edge_decided"}
    assert decided["edge_Step1_Step2"] == "code"
    assert decided["edge_Step2_Step4"] == "model"
    assert decided["edge_Step2_Step3"] == "rule"


@pytest.mark.anyio
async def test_rows_never_reach_the_prompt_and_the_step_comes_last(setting) -> None:
    prompts = {}

    def model(messages, choices, context):
        prompts[context] = messages
        return script(messages, choices, context)

    with sqlite3.connect(setting.folder / "telemetry.db") as db:
        db.executemany("INSERT INTO depth VALUES (?, ?)", [(f"m{n}", n) for n in range(50)])
    db.close()
    await setting.runner(model=ScriptedModel(model), person=ScriptedPerson(APPROVE)).run()
    first, second = prompts["Step1"], prompts["Step2"]
    assert first[:2] == second[:2]
    assert first[1]["content"].startswith("# Parameters")
    assert "more than 100 is too long" in first[2]["content"]
    assert "52 rows" in first[2]["content"]
    assert "m30" not in str(prompts)
    assert second[2]["content"].index("Findings of Step1.") < second[2]["content"].index(
        "# Your step"
    )
    assert "somebody deployed" in prompts["Step2/edge_Step2_Step4"][-1]["content"]


@pytest.mark.anyio
async def test_without_a_model_a_person_decides_and_findings_come_from_the_evidence(
    setting,
) -> None:
    person = ScriptedPerson({"Step2/edge_Step2_Step4": "disabled"})
    outcome = await setting.runner(person=person).run(run_id="r")
    assert outcome.path == ("Step1", "Step2", "Step3")
    assert outcome.conclusion == "All is well."
    assert "2 rows" in outcome.findings["Step1"]
    assert [question.gate for question in person.asked] == ["Step2/edge_Step2_Step4"]
    assert "somebody deployed" in person.asked[0].text


@pytest.mark.anyio
async def test_with_nobody_to_decide_the_step_fails_by_name(setting) -> None:
    guide = GUIDE.replace("Was there one?", "Was there one?") + ""
    runner = setting.runner(
        guide=guide.replace(
            "### Connections\n\n- if somebody",
            "### Policy\n\n- retries: 0\n\n### Connections\n\n- if somebody",
        ),
        ask=False,
    )
    outcome = await runner.run(run_id="r")
    assert (outcome.status, outcome.steps["Step2"]) == ("failed", "failed")
    errors = [e.data["error"] for e in setting.log.events("r") if e.kind == "step_finished"]
    assert any("Nobody can decide" in str(error) for error in errors)


@pytest.mark.anyio
async def test_a_denied_gate_ends_the_run_inconclusive_or_failed(setting) -> None:
    person = ScriptedPerson({"Step4/approve": "deny"})
    outcome = await setting.runner(model=ScriptedModel(script), person=person).run()
    assert outcome.steps["Step4"] == "cancelled"
    assert outcome.status == "inconclusive"
    assert outcome.findings["Step2"] == "Findings of Step2."


@pytest.mark.anyio
async def test_a_gate_is_answered_from_another_process(setting) -> None:
    """Here: through another handle on the same file, while the run waits."""
    with RunLog(setting.folder / "runs.db") as other:

        def elsewhere(event) -> None:
            if event.kind == "gate_opened":
                other.append(
                    "r",
                    "gate_answered",
                    "Step4",
                    {"gate": "Step4/approve", "answer": "approve", "by": "person"},
                )

        options = RunOptions(drive=DriveConfig(poll=0.05))
        runner = setting.runner(model=ScriptedModel(script), on_event=elsewhere, options=options)
        with anyio.fail_after(30):
            outcome = await runner.run(run_id="r")
    assert outcome.conclusion == "The deployment was rolled back."
    events = setting.log.events("r")
    assert [event.index for event in events] == list(range(len(events)))


@pytest.mark.anyio
async def test_a_run_that_waits_for_people_only_can_be_left_and_taken_up(setting) -> None:
    guide = GUIDE.replace("approve (default deny, after 10m)", "approve")
    options = RunOptions(drive=DriveConfig(poll=0.02, detach=0.05))
    runner = setting.runner(guide=guide, model=ScriptedModel(script), options=options)
    with anyio.fail_after(30):
        left = await runner.run(run_id="r")
    assert (left.status, left.waiting) == ("running", ("Step4/approve",))
    data = {"gate": "Step4/approve", "answer": "approve", "by": "person"}
    setting.log.append("r", "gate_answered", "Step4", data)
    with anyio.fail_after(30):
        outcome = await runner.resume("r")
    assert outcome.conclusion == "The deployment was rolled back."
    assert setting.kinds("r").count("gate_opened") == 1


@pytest.mark.anyio
async def test_a_question_takes_its_default_after_its_time(setting) -> None:
    parsed = parse_guide(GUIDE, name="queues")
    options = ExecutorOptions(patience=0.05)
    executor = StepExecutor(
        parsed, templates=setting.templates, store=setting.store, options=options
    )
    runner = GuideRunner(make_plan(parsed), log=setting.log, executor=executor)
    with anyio.fail_after(30):
        outcome = await runner.run(run_id="r")
    assert outcome.conclusion == "All is well."
    answered = [e.data for e in setting.log.events("r") if e.kind == "gate_answered"]
    assert [(data["answer"], data["by"]) for data in answered] == [("disabled", "default")]


@pytest.mark.anyio
async def test_a_callback_is_asked_again_for_an_answer_it_may_give(setting) -> None:
    answers = iter(["what?", "approve"])
    person = CallbackPerson(lambda question: next(answers))
    outcome = await setting.runner(model=ScriptedModel(script), person=person).run()
    assert outcome.conclusion == "The deployment was rolled back."


async def interrupted(setting, when: Callable, **options) -> None:
    """Start the run ``r`` and cancel it, as Ctrl-C does, at the first event that ``when`` names."""

    def stop(event) -> None:
        if when(event):
            scope.cancel()

    with anyio.CancelScope() as scope:
        await setting.runner(on_event=stop, **options).run(run_id="r")
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_cancelling_leaves_a_run_that_can_be_resumed(setting) -> None:
    model = ScriptedModel(script)
    await interrupted(setting, lambda e: (e.kind, e.step) == ("step_started", "Step2"), model=model)
    assert setting.kinds("r")[-1] != "run_ended"
    assert setting.log.owner("r") is None
    runner = setting.runner(model=model, person=ScriptedPerson(APPROVE))
    outcome = await runner.resume("r")
    assert outcome.path == ("Step1", "Step2", "Step4")
    assert model.calls.count("Step1") == 1
    assert await runner.resume("r") == outcome


@pytest.mark.anyio
async def test_a_changed_guide_or_model_is_not_resumed(setting) -> None:
    model = ScriptedModel(script)
    await interrupted(setting, lambda e: e.kind == "step_started", model=model)
    changed = setting.runner(guide=GUIDE.replace("Do it.", "Do it now."), model=model)
    with pytest.raises(GuideError, match="fork"):
        await changed.resume("r")
    with pytest.raises(GuideError, match="model"):
        await setting.runner(model=ScriptedModel(script, name="other")).resume("r")
    assert setting.kinds("r")[-1] == "step_started"


@pytest.mark.anyio
async def test_a_run_is_driven_by_one_process_at_a_time(setting) -> None:
    model = ScriptedModel(script)
    await interrupted(setting, lambda e: e.kind == "step_started", model=model)
    with RunLog(setting.folder / "runs.db") as other, other.own("r"), pytest.raises(RunBusy):
        await setting.runner(model=model).resume("r")
    with pytest.raises(InvalidRequest):
        await setting.runner(model=model).run(run_id="r")
    with pytest.raises(InvalidRequest):
        await setting.runner(model=model).resume("unknown")


@pytest.mark.anyio
async def test_events_come_as_they_happen(setting) -> None:
    runner = setting.runner(model=ScriptedModel(script), person=ScriptedPerson(APPROVE))
    async with runner.start(run_id="r") as run:
        kinds = [event.kind async for event in run]
    assert kinds == setting.kinds("r")
    assert run.outcome is not None
    assert run.outcome.ok


@pytest.mark.anyio
async def test_leaving_the_events_early_stops_the_run_resumable(setting) -> None:
    guide = GUIDE.replace("approve (default deny, after 10m)", "approve")
    runner = setting.runner(guide=guide, model=ScriptedModel(script))
    async with runner.start(run_id="r") as run:
        async for event in run:
            if event.kind == "gate_opened":
                break
        assert run.waits() == {"Step4": "gate"}
    assert run.outcome is None
    resumed = setting.runner(
        guide=guide, model=ScriptedModel(script), person=ScriptedPerson(APPROVE)
    )
    assert (await resumed.resume("r")).ok


@pytest.mark.anyio
async def test_heartbeats_of_a_long_step(setting) -> None:
    free = anyio.Event()

    class Slow(ScriptedModel):
        async def write(self, messages, *, context, max_tokens=512):
            if context == "Step1":
                await free.wait()
            return await super().write(messages, context=context, max_tokens=max_tokens)

    def note(event) -> None:
        if event.kind == "lease_renewed":
            free.set()

    options = RunOptions(drive=DriveConfig(heartbeat=0.02))
    runner = setting.runner(
        model=Slow(script), on_event=note, options=options, person=ScriptedPerson(APPROVE)
    )
    with anyio.fail_after(30):
        assert (await runner.run(run_id="r")).ok
    beats = [e for e in setting.log.events("r") if e.kind == "lease_renewed"]
    assert beats[0].data == {"worker": "Step1#1"}


@pytest.mark.anyio
async def test_stepflys_semantics(setting) -> None:
    options = RunOptions(schedule=ScheduleConfig(compat=True, poll=0.01))
    person = ScriptedPerson({"Step2/edge_Step2_Step4": "disabled"})
    runner = setting.runner(person=person, options=options)
    with anyio.fail_after(30):
        outcome = await runner.run(run_id="r")
        await runner.replay("r")
    assert (outcome.status, outcome.conclusion) == ("succeeded", "All is well.")
    assert outcome.path == ("Step1", "Step2", "Step3")
    assert await runner.resume("r") == outcome
