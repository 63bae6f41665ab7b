"""Runs read back: replays without a live call, and forks in which a step ends differently."""

from __future__ import annotations

import pytest

from agentrt.errors import GuideError
from agentrt.workflows.decide import DecisionFailure
from agentrt.workflows.models import ScriptedModel
from agentrt.workflows.person import ScriptedPerson
from agentrt.workflows.run_replay import ReplayDivergence
from tests.workflows.test_run import APPROVE, GUIDE, Setting, script


@pytest.fixture
def setting(tmp_path):
    made = Setting(tmp_path)
    yield made
    made.log.close()
    made.store.close()


@pytest.mark.anyio
async def test_replay_makes_no_call_and_agrees(setting) -> None:
    model = ScriptedModel(script)
    runner = setting.runner(model=model, person=ScriptedPerson(APPROVE))
    await runner.run(run_id="r")
    (setting.folder / "telemetry.db").unlink()
    count, length = len(model.calls), len(setting.log.events("r"))
    replayed = await setting.runner(model=model).replay("r")
    assert (replayed.attempts, replayed.events) == (3, length)
    assert replayed.calls == 5
    assert len(model.calls) == count
    assert len(setting.log.events("r")) == length


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "with_model", "kind"),
    [
        (("Was there one?", "Was there really one?"), True, "model_called"),
        (("> limit`", "> limit * 1000`"), False, "edge_decided"),
        (("- `depths`\n", ""), False, "query_run"),
    ],
)
async def test_a_replay_that_diverges_names_the_event(setting, change, with_model, kind) -> None:
    model = ScriptedModel(script) if with_model else None
    person = ScriptedPerson({**APPROVE, "Step2/edge_Step2_Step4": "enabled"})
    assert (await setting.runner(model=model, person=person).run(run_id="r")).ok
    guide = GUIDE.replace(*change)
    assert guide != GUIDE
    with pytest.raises(ReplayDivergence) as caught:
        await setting.runner(guide=guide, model=model).replay("r")
    event = setting.log.events("r")[caught.value.index]
    assert event.step == "Step1"
    assert event.kind == kind
    assert f"event {event.index}" in str(caught.value)


@pytest.mark.anyio
async def test_fork_gives_a_step_another_end(setting) -> None:
    model = ScriptedModel(script)
    runner = setting.runner(model=model, person=ScriptedPerson(APPROVE))
    await runner.run(run_id="r")
    before = setting.log.events("r")
    edges = {"edge_Step2_Step4": "disabled", "edge_Step2_Step3": "enabled"}
    outcome = await runner.fork(
        "r", "Step2", {"findings": "Nobody deployed."}, edges=edges, new_run_id="f"
    )
    assert outcome.path == ("Step1", "Step2", "Step3")
    assert outcome.findings["Step2"] == "Nobody deployed."
    assert setting.log.events("r") == before
    assert (await runner.replay("f")).attempts == 2
    with pytest.raises(DecisionFailure, match="left out"):
        await runner.fork("r", "Step2", {}, edges={"edge_Step2_Step4": "disabled"})


@pytest.mark.anyio
async def test_a_fork_may_go_on_with_a_changed_guide(setting) -> None:
    model = ScriptedModel(script)
    await setting.runner(model=model, person=ScriptedPerson(APPROVE)).run(run_id="r")
    changed = setting.runner(
        guide=GUIDE.replace("Do it.", "Do it now."), model=model, person=ScriptedPerson(APPROVE)
    )
    outcome = await changed.fork("r", "Step2", {"findings": "As before."}, new_run_id="f")
    assert outcome.path == ("Step1", "Step2", "Step4")
    assert await changed.resume("f") == outcome
    moved = setting.runner(guide=GUIDE.replace("otherwise: Step 3", "otherwise: Step 4", 1))
    with pytest.raises(GuideError, match="other connections"):
        await moved.fork("r", "Step2", {"findings": "x"})
