"""The sample in StepFly's layout, read whole; plans that are written and read again."""

import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START
from agentrt.workflows.lint import lint, lint_path
from agentrt.workflows.plan import make_plan
from agentrt.workflows.queries import QueryTemplates
from agentrt.workflows.stepfly import (
    bind_query,
    bound_queries,
    dump_plan_dag,
    find_folder,
    load_incident,
    load_incident_map,
    load_plugin_blocks,
    load_stepfly,
    load_stepfly_queries,
    parse_incident,
    queries_to_toml,
    render_compat,
)
from agentrt.workflows.stepfly_dag import DagEdge, DagNode, PlanDag, dag_to_json, parse_plan_dag

SAMPLE = Path(__file__).parent / "stepfly_sample"
VALUES = {
    "relay": "r2",
    "start_time": "2026-03-04T08:00:00Z",
    "end_time": "2026-03-04T08:30:00Z",
    "limit": "50",
}


def original(number: int):
    """The sample's plugin as Python would run it; it is ours."""
    path = SAMPLE / "plugins" / "MailDelay" / f"plugin_{number}.py"
    spec = importlib.util.spec_from_file_location(f"sample_plugin_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"Plugin{number}")()


def test_the_sample_is_a_guide():
    guide = load_stepfly(SAMPLE)
    assert (guide.name, guide.title, guide.source_format) == (
        "MailDelay",
        "Mail arrives late",
        "stepfly",
    )
    assert [step.id for step in guide.steps] == [
        START,
        *(f"Step{number}" for number in range(1, 6)),
    ]
    assert [parameter.name for parameter in guide.parameters] == [
        "start_time",
        "end_time",
        "relay",
        "limit",
    ]
    assert guide.parameters[0].type == "timestamp"
    first = guide.step("Step1")
    assert [use.query for use in first.queries] == ["plugin_1"]
    assert first.edges[0].condition == "if no delay is longer than 600 seconds"
    assert first.edges[1].otherwise
    assert guide.step("Step2").edges[0].unconditional
    assert guide.step("Step5").conclusion.startswith("If the queue is deeper than 1000")


def test_compact_mode_names_queries_and_full_mode_shows_them():
    compact = load_stepfly(SAMPLE).step("Step3").instructions
    full = load_stepfly(SAMPLE, mode="full").step("Step3").instructions
    assert "[query `plugin_2`]" in compact
    assert "SELECT" not in compact
    assert "SELECT ts, depth" in full


def test_the_sample_plans_and_its_plan_is_written_back_as_it_was():
    plan = make_plan(load_stepfly(SAMPLE))
    assert plan.width() == 2
    text = dump_plan_dag(plan)
    read = parse_plan_dag((SAMPLE / "TSGs/PlanDAGs/MailDelay_plan_dag.json").read_text())
    again = parse_plan_dag(text)
    assert stripped(again) == stripped(read)


def stripped(dag: PlanDag):
    """What a PlanDAG says, without lines; lists of inputs as sets."""
    return [
        (
            node.name,
            node.description,
            {edge.name for edge in node.inputs},
            {(edge.name, edge.condition) for edge in node.outputs},
        )
        for node in dag.nodes
    ]


def test_without_a_plan_file_the_sentences_decide(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "TSGs" / "PlanDAGs")
    guide = load_stepfly(tmp_path / "copy")
    edges = {(edge.source, edge.target): edge for step in guide.steps for edge in step.edges}
    assert set(edges) == {
        ("Step1", END),
        ("Step1", "Step2"),
        ("Step2", "Step3"),
        ("Step2", "Step4"),
        ("Step3", "Step5"),
        ("Step4", "Step5"),
        ("Step5", END),
    }
    assert edges["Step1", END].condition == "If no delay is longer than 600 seconds"
    assert edges["Step1", "Step2"].otherwise
    assert make_plan(guide).order[0] == START


def test_the_mapping_chooses_the_guide_and_the_incident_fills_it():
    assert load_incident_map(SAMPLE / "config/incident_tsg_map.json") == {
        "2026-0117": "MailDelay.md"
    }
    folder = find_folder(SAMPLE, incident="2026-0117")
    incident = folder.incident("2026-0117")
    assert incident.parameters == VALUES
    assert incident.fields["Severity"] == "3"
    assert "[URL removed]" in incident.sections["Summary"]
    with pytest.raises(GuideError, match="no guide is mapped"):
        find_folder(SAMPLE, incident="2026-0118")
    with pytest.raises(GuideError, match="not an incident's id"):
        folder.incident("../2026-0117")


def test_redaction_sees_the_whole_text_first():
    path = SAMPLE / "incidents/2026-0117.txt"
    incident = load_incident(path, redact=lambda text: text.partition("## Notes")[0])
    assert all("is the cause" not in text for text in incident.sections.values())


def test_a_parameter_given_twice_is_refused():
    text = "Incident ID: 1\n## Parameters for Analysis\n- a: 1\n- a: 2\n"
    with pytest.raises(GuideError, match="given twice"):
        parse_incident(text)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("start", ["2026-03-04T08:00:00Z", "2026-03-04 08:00:00", "8Z", ""])
def test_rendering_equals_the_plugins_own(number, start):
    values = {**VALUES, "start_time": start, "relay": "o'brien Tango"}
    query = load_stepfly_queries(SAMPLE)[f"plugin_{number}"]
    assert render_compat(query, values) == original(number).execute(**values)


def test_a_missing_parameter_is_an_error_by_name():
    query = load_stepfly_queries(SAMPLE)["plugin_1"]
    assert original(1).execute(relay="r2") == "Missing required parameter: start_time"
    with pytest.raises(GuideError, match="missing required parameter: start_time"):
        render_compat(query, {"relay": "r2"})


def test_the_extraction_form_has_defaults():
    query = load_stepfly_queries(SAMPLE)["plugin_3"]
    assert "level = 'timeout'" in render_compat(query, VALUES)
    assert "level = 'error'" in render_compat(query, {**VALUES, "level": "error"})
    assert load_plugin_blocks(SAMPLE)["plugin_3"].startswith("SELECT ts, message")


def test_bound_statements_return_what_the_rendered_ones_do(tmp_path):
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE relay_delay (relay, ts, delay_seconds)")
    database.execute("CREATE TABLE relay_queue (relay, ts, depth)")
    database.execute("CREATE TABLE filter_log (ts, message, level)")
    for minute in range(0, 60, 5):
        ts = f"2026-03-04 08:{minute:02}:00"
        for relay in ("r1", "r2"):
            database.execute("INSERT INTO relay_delay VALUES (?, ?, ?)", (relay, ts, minute))
            database.execute("INSERT INTO relay_queue VALUES (?, ?, ?)", (relay, ts, minute))
            database.execute(
                "INSERT INTO filter_log VALUES (?, ?, 'timeout')", (ts, f"at {relay}.")
            )
    values = {**VALUES, "start_time": "2026-03-04T08:07:00Z"}
    plain = {**values, "start_time": "2026-03-04 08:07:00", "end_time": "2026-03-04 08:30:00"}
    for query in load_stepfly_queries(SAMPLE).values():
        bound = bind_query(query)
        texts = plain if query.form == "extraction" else values
        rendered = database.execute(render_compat(query, texts)).fetchall()
        given_values = {
            each.name: float(plain[each.name]) if each.type == "number" else plain.get(each.name)
            for each in bound.parameters
        }
        for each in bound.parameters:
            if given_values[each.name] is None:
                given_values[each.name] = each.default
        assert rendered
        assert database.execute(bound.text, given_values).fetchall() == rendered
    database.close()


def test_bound_queries_are_a_template_file(tmp_path):
    queries = load_stepfly_queries(SAMPLE)
    text = queries_to_toml(queries, {"type": "sqlite", "path": "mail.db"})
    path = tmp_path / "queries.toml"
    path.write_text(text, encoding="utf-8")
    templates = QueryTemplates.load(path)
    assert set(templates.queries) == set(queries) == set(bound_queries(queries))
    bound = templates.bind("plugin_1", VALUES)
    assert bound.values["start_time"] == "2026-03-04 08:00:00"
    assert "'" not in bound.statement


def test_the_sample_is_clean():
    assert lint_path(SAMPLE) == []
    assert lint(load_stepfly(SAMPLE)) == []


def dag_text(*nodes: tuple[str, list[str], list[tuple[str, str]]]) -> str:
    return dag_to_json(
        PlanDag(
            tuple(
                DagNode(
                    name,
                    f"About {name}",
                    tuple(DagEdge(edge) for edge in inputs),
                    tuple(DagEdge(edge, condition) for edge, condition in outputs),
                )
                for name, inputs, outputs in nodes
            )
        )
    )


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_plan_survives_being_written_and_read(count, random):
    names = [f"Step{number}" for number in range(1, count + 1)]
    edges = [(START, names[0], "none")]
    for at, name in enumerate(names[1:], 1):
        for source in random.sample(names[:at], random.randint(1, min(3, at))):
            edges.append((source, name, random.choice(["none", f"if depth is over {at}"])))
    edges += [(name, END, "otherwise") for name in names]
    text = dag_text(
        *(
            (
                node,
                [f"e{at}" for at, edge in enumerate(edges) if edge[1] == node],
                [(f"e{at}", edge[2]) for at, edge in enumerate(edges) if edge[0] == node],
            )
            for node in (START, *names, END)
        )
    )
    dag = parse_plan_dag(text)
    assert dag_to_json(dag) == text
    assert json.loads(text)["nodes"][0]["node"] == START
