"""What a step's attempt does: commands in sandboxes, entities, nested guides, prompts, data."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager

import anyio
import pytest

from agentrt.sandbox.choose import make_provider
from agentrt.workflows.data import DataStore, Handle
from agentrt.workflows.executor import StepExecutor
from agentrt.workflows.log import RunLog
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.plan import make_plan
from agentrt.workflows.prompt import clip, environment_form, fill
from agentrt.workflows.queries import QueryTemplates
from agentrt.workflows.run import GuideRunner

QUERIES = """
[source.telemetry]
type = "sqlite"
path = "telemetry.db"

[query.hosts]
source = "telemetry"
sql = "SELECT host FROM files GROUP BY host ORDER BY host"

[query.files]
source = "telemetry"
sql = "SELECT name, size FROM files WHERE host = :host ORDER BY name"
[query.files.parameters]
host = {type = "string"}
"""

TEMPLATE = """# Test

## Parameters

- `name` (string, default "all"): a name

## Step 1 - Work

### Instructions

Do it.
{body}
### Connections

{edges}

## Step 2 - Conclude

### Instructions

Say {name}.

### Connections

- end

<!-- Reaches A Final Conclusion: It is done. -->
"""


def guide_text(body: str, edges: str = "- Step 2") -> str:
    return TEMPLATE.replace("{body}", body).replace("{edges}", edges)


@pytest.fixture
def place(tmp_path):
    with sqlite3.connect(tmp_path / "telemetry.db") as db:
        db.execute("CREATE TABLE files (host TEXT, name TEXT, size INTEGER)")
        rows = [("a", "x", 1), ("a", "y", 70), ("b", "z", 5)]
        db.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)
    db.close()
    return tmp_path


@asynccontextmanager
async def running(place, text, **executor):
    """Give the outcome of a run, its events, and the store."""
    parameters = executor.pop("parameters", {})
    guide = parse_guide(text, name="test")
    with RunLog(place / "runs.db") as log, DataStore(place / "data") as store:
        templates = QueryTemplates.parse(QUERIES, path=str(place / "queries.toml"))
        made = StepExecutor(guide, templates=templates, store=store, **executor)
        runner = GuideRunner(make_plan(guide), log=log, executor=made)
        with anyio.fail_after(30):
            outcome = await runner.run(parameters, run_id="r")
            if outcome.ok:
                await runner.replay("r")
        yield outcome, log.events("r"), store


NO_RETRY = "\n### Policy\n\n- retries: 0\n"


@pytest.mark.anyio
async def test_a_command_runs_in_a_sandbox_with_its_parameters_and_data(place) -> None:
    body = """
### Queries

- `files` with host=a

### Command

```sh
rows=$(($(wc -l < data/files.csv) - 1))
printf '%s %s %s' "$rows" {name} "${#name}"
```
"""
    edges = '- if `command.stdout == "2 x 1"`: Step 2\n- otherwise: end'
    text = guide_text(body, edges)
    hostile = 'x"; touch hacked; echo "'
    async with make_provider("process") as provider:
        for value, path in (("x", ("Step1", "Step2")), (hostile, ("Step1",))):
            folder = place / str(len(value))
            folder.mkdir()
            (folder / "telemetry.db").write_bytes((place / "telemetry.db").read_bytes())
            given = {"name": value}
            options = {"sandbox": provider.create, "parameters": given}
            async with running(folder, text, **options) as (outcome, events, _):
                assert outcome.status == "succeeded", events[-3:]
                assert outcome.path == path
    called = next(event.data for event in events if event.kind == "tool_called")
    assert called["request"]["environment"]["name"] == hostile
    assert hostile not in called["request"]["command"]
    assert "touch hacked" in called["outcome"]["stdout"]


@pytest.mark.anyio
async def test_a_command_that_fails_or_hangs_fails_its_step(place) -> None:
    cases = {
        "echo why >&2; exit 3": "failed",
        "sleep 60": "timed_out",
        "no-such-program-at-all": "failed",
    }
    for number, (command, status) in enumerate(cases.items()):
        folder = place / str(number)
        folder.mkdir()
        body = (
            f"\n### Command\n\n```sh\n{command}\n```\n\n### Policy\n\n- retries: 0\n- timeout: 1s\n"
        )
        async with (
            make_provider("process") as provider,
            running(folder, guide_text(body), sandbox=provider.create) as (outcome, events, _),
        ):
            assert outcome.status == "failed"
            # The sandbox's own time limit and the step's are the same: either may come first.
            assert outcome.steps["Step1"] in (status, "failed")
            assert any(event.data.get("error") for event in events)


@pytest.mark.anyio
async def test_without_a_sandbox_a_command_is_refused_by_name(place) -> None:
    body = "\n### Command\n\n```sh\ntrue\n```\n" + NO_RETRY
    async with running(place, guide_text(body)) as (outcome, events, _):
        assert outcome.status == "failed"
        assert any("no sandbox" in str(event.data.get("error")) for event in events)


EACH = """# Each

## Step 1 - Find the hosts

### Instructions

Find them.

### Queries

- `hosts`

### Connections

- Step 2

## Step 2 - Look at each

### Instructions

Look.

### Queries

- `files` with host=item

### Connections

- if `max(files.size) > 60 and files.rows == 3`: Step 3
- otherwise: end

### Policy

- for each: `hosts.host`

## Step 3 - Conclude

### Instructions

Conclude.

### Connections

- if `count(files.item == "a") == 2`: end

<!-- Reaches A Final Conclusion: One is large. -->
"""


@pytest.mark.anyio
async def test_a_step_runs_for_each_entity_and_its_tables_become_one(place) -> None:
    async with running(place, EACH) as (outcome, events, store):
        assert outcome.conclusion == "One is large."
        queries = [event.data for event in events if event.kind == "query_run"]
        asked = [data["request"]["parameters"] for data in queries]
        assert asked == [{}, {"host": "a"}, {"host": "b"}]
        result = outcome.results["Step2"]
        assert result["values"] == {"items": ["a", "b"]}
        merged = store.columns(Handle.from_json(result["handles"]["files"]))
        assert merged == {"item": ["a", "a", "b"], "name": ["x", "y", "z"], "size": [1, 70, 5]}


NESTED = "\n### Policy\n\n- guide: other.md\n- retries: 0\n"


class Child:
    """Stands for the run of another guide."""

    def __init__(self, status: str) -> None:
        self.asked = []
        self._status = status

    async def __call__(self, step, parameters, run_id):
        self.asked.append((step.guide, dict(parameters), run_id))
        return {
            "run_id": run_id,
            "status": self._status,
            "reason": "so it was",
            "conclusion": "The other.",
            "findings": {"Step1": "Seen."},
            "tokens": 30,
            "cached_tokens": 20,
        }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "path"),
    [("succeeded", ("Step1", "Step2")), ("inconclusive", ("Step1",)), ("failed", ())],
)
async def test_a_step_runs_another_guide(place, status, path) -> None:
    child = Child(status)
    edges = '- if `guide.status == "succeeded"`: Step 2\n- otherwise: end'
    async with running(place, guide_text(NESTED, edges), nested=child) as (outcome, events, _):
        assert outcome.path == path
        assert child.asked == [("other.md", {"name": "all"}, "r.Step1")]
        if path:
            assert "The other." in outcome.findings["Step1"]
            assert (outcome.tokens, outcome.cached_tokens) == (30, 20)
        else:
            assert any("ended failed" in str(event.data.get("error")) for event in events)


@pytest.mark.anyio
async def test_a_guide_without_the_means_to_nest_says_so(place) -> None:
    async with running(place, guide_text(NESTED)) as (outcome, events, _):
        assert outcome.status == "failed"
        assert any("cannot be nested" in str(event.data.get("error")) for event in events)


def test_placeholders() -> None:
    assert fill("{a} {b} {{a}} ${a}", {"a": "1"}) == "1 {b} {{a}} ${a}"
    assert environment_form("echo {a} ${a} {b}", ["a"]) == 'echo "${a}" ${a} {b}'
    assert clip("abcdef", 3) == "abc [cut: 3 more characters]"
