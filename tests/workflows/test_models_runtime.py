"""The embedded model: one program per run, whose steps share one prefix."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from agentrt.engine.model.make import make_model
from agentrt.runtime import Runtime, RuntimeConfig
from agentrt.workflows.executor import ExecutorOptions, StepExecutor
from agentrt.workflows.log import RunLog
from agentrt.workflows.models import ModelFailure
from agentrt.workflows.models_runtime import RuntimeModel
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.plan import make_plan
from agentrt.workflows.run import GuideRunner

STEPS = "".join(
    f"""
## Step {number} - Look at part {number}

### Instructions

Look at part {number} and say what is wrong with it.

### Connections

- if part {number} is broken: Step 6
- otherwise: Step 7
"""
    for number in range(2, 6)
)
GUIDE = f"""# Something is slow

{"The service has many parts, and each of them can be slow for reasons of its own. " * 12}

## Step 1 - Begin

### Instructions

Begin.

### Connections

- Step 2
- Step 3
- Step 4
- Step 5
{STEPS}
## Step 6 - Note what is broken

### Instructions

Note it.

### Connections

- Step 8

## Step 7 - Note what is not

### Instructions

Note it.

### Connections

- Step 8

## Step 8 - Conclude

### Instructions

Conclude.

### Connections

- end

<!-- Reaches A Final Conclusion: Something was found. -->
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "tiny"
    make_model(place, "qwen3", "tiny", 0, dtype="float32")
    return place


@asynccontextmanager
async def opened(directory, **more):
    config = RuntimeConfig(
        model=str(directory), pool_tokens=65536, dtype="float32", threads=1, sandbox=None, **more
    )
    async with Runtime.open(config) as runtime:
        yield runtime


@pytest.mark.anyio
async def test_later_steps_compute_at_most_a_tenth_of_the_shared_prefix_again(
    directory, tmp_path
) -> None:
    guide = parse_guide(GUIDE, name="slow")
    async with opened(directory) as runtime:
        model = RuntimeModel(runtime)
        executor = StepExecutor(
            guide,
            model=model,
            incident="The alert LatencyHigh fired at 10:00.",
            options=ExecutorOptions(findings_tokens=8, ask_person=False),
        )
        with RunLog(tmp_path / "runs.db") as log:
            runner = GuideRunner(make_plan(guide), log=log, executor=executor)
            with anyio.fail_after(100):
                outcome = await runner.run(run_id="r")
            events = log.events("r")
            replayed = await runner.replay("r")
        shared = next(iter(model._prepared.values()))
        program = model.program_id
        await model.aclose()
    assert outcome.status == "succeeded"
    assert set(outcome.path) >= {"Step1", "Step2", "Step3", "Step4", "Step5", "Step8"}
    calls = [e.data["outcome"] for e in events if e.kind == "model_called"]
    assert len(calls) == len(outcome.path) + 4 == replayed.calls
    assert shared > 300
    # All of them come after the prefix was computed, the first one included.
    for call in calls:
        assert shared - call["cached_tokens"] <= 0.1 * shared, (shared, call)
    assert outcome.cached_tokens == sum(call["cached_tokens"] for call in calls)
    assert outcome.tokens == sum(call["tokens"] for call in calls)
    assert program is not None
    decided = {e.data["by"] for e in events if e.kind == "edge_decided"}
    assert decided == {"rule", "model"}


@pytest.mark.anyio
async def test_what_does_not_fit_the_model_is_a_named_failure(directory) -> None:
    async with opened(directory) as runtime:
        model = RuntimeModel(runtime)
        with pytest.raises(ModelFailure) as caught:
            await model.write([{"role": "user", "content": "long " * 20000}], context="Step1")
        assert caught.value.kind == "refused"
        await model.aclose()
        with pytest.raises(ModelFailure):
            await RuntimeModel(runtime, timeout=0.0).write(
                [{"role": "user", "content": "a"}], context="Step1", max_tokens=2000
            )
