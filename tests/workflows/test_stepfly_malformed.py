"""Malformed files in StepFly's formats: refused with file, place and remedy; nothing is run."""

import shutil
from pathlib import Path

import pytest

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START
from agentrt.workflows.lint import lint_path
from agentrt.workflows.stepfly import (
    bind_query,
    load_incident,
    load_incident_map,
    load_stepfly,
    load_stepfly_queries,
    render_compat,
)
from agentrt.workflows.stepfly_bind import compat_timestamp
from agentrt.workflows.stepfly_dag import parse_plan_dag, resolve_edges
from agentrt.workflows.stepfly_markdown import base_name, compact_text, parse_markdown
from agentrt.workflows.stepfly_plugin import parse_extracted_plugins, parse_plugin_class
from tests.workflows.test_stepfly import SAMPLE, dag_text

PLUGIN = 'class P:\n    plugin_id = 7\n    template = "{0}"\n'


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", ":1: not JSON"),
        ("[]", "'nodes' must be a list"),
        ('{"nodes": [{"node": "", "description": ""}]}', "nodes.0.: 'node' must be a text"),
        ('{"nodes": [{"node": "A", "input_edges": {}}]}', "'input_edges' must be a list"),
        ('{"nodes": [{"node": "A", "output_edges": [{"edge": 3}]}]}', "'edge' must be a text"),
        ('{"nodes": [{"node": "A"},\n{"node": "A"}]}', ":2: two nodes are 'A'"),
    ],
)
def test_a_plan_of_another_form_is_refused(text, says):
    with pytest.raises(GuideError, match=says) as error:
        parse_plan_dag(text, "dag.json")
    assert "dag.json" in error.value.message
    assert error.value.remedy


def test_start_and_end_are_found_in_any_case_and_names_are_free():
    text = dag_text(("START", [], [("go", "none")]), ("A", ["go"], [("x", "none")]),
                    ("End", ["x"], []))  # fmt: skip
    edges = resolve_edges(parse_plan_dag(text))
    assert [(edge.name, edge.source, edge.target) for edge in edges] == [
        ("go", START, "A"),
        ("x", "A", END),
    ]


def test_the_first_mention_of_an_edge_has_its_condition():
    nodes = [
        ("end", ["x"], []),
        ("start", [], [("s", "none")]),
        ("A", ["s"], [("x", "if depth is over 5")]),
    ]
    late = resolve_edges(parse_plan_dag(dag_text(*nodes)))
    assert next(edge for edge in late if edge.name == "x").condition == ""
    early = resolve_edges(parse_plan_dag(dag_text(*nodes[1:], nodes[0])))
    assert next(edge for edge in early if edge.name == "x").condition == "if depth is over 5"


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([("start", [], [("s", "none")]), ("end", [], [])], "nothing leads to end"),
        ([("start", [], [("s", "none"), ("t", "none")]), ("end", ["s"], [])], "0 input lists"),
        ([("start", [], [("s", "none"), ("s", "none")]), ("end", ["s"], [])], "2 output lists"),
        ([("start", [], [("s", "none")]), ("A", ["s"], [])], "no node 'end'"),
    ],
)
def test_edges_that_do_not_fit_together_are_refused(nodes, says):
    with pytest.raises(GuideError, match=says):
        resolve_edges(parse_plan_dag(dag_text(*nodes)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class P(", ":1: not Python"),
        ("x = 1\n", "no class with a template"),
        (PLUGIN, "not a plain name"),
        (PLUGIN.replace("{0}", "{a.__class__}"), "not a plain name"),
        (PLUGIN.replace("{0}", "{a!r}"), "not a plain name"),
        (PLUGIN.replace("{0}", "{a"), "not a format template"),
        (PLUGIN.replace('"{0}"', "open('x').read()"), ":3: template is not a constant"),
        (PLUGIN.replace('"{0}"', 'f"{x}"'), "not a constant"),
        (PLUGIN.replace("{0}", "{a}") + "    required_params = load()\n", ":4: required_params"),
    ],
)
def test_a_plugin_of_another_form_is_refused(text, says):
    with pytest.raises(GuideError, match=says) as error:
        parse_plugin_class(text, "plugin_7.py")
    assert "plugin_7.py" in error.value.message


def test_plugin_code_is_never_run(tmp_path):
    trap = tmp_path / "trap"
    text = f"open({str(trap)!r}, 'w')\nclass P:\n    open({str(trap)!r}, 'w')\n"
    text += "    plugin_id = '1'\n    template = ' SELECT {a} '.strip() + ', 2'\n"
    query = parse_plugin_class(text, "plugin_1.py")
    assert render_compat(query, {"a": "1"}) == "SELECT 1, 2"
    assert not trap.exists()


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("{{ a | upper }}", "cannot read"),
        ("{% if a %}{% endif %}", "blocks and comments"),
        ("{{ b }}", "used and not declared"),
    ],
)
def test_an_expression_beyond_names_and_defaults_is_refused(item, says):
    text = f'{{"plugins": [{{"plugin_id": "1", "templated_code": "{item}", "parameters": [{{"name": "a"}}]}}]}}'  # noqa: E501
    with pytest.raises(GuideError, match=says):
        parse_extracted_plugins(text, "x.json")


@pytest.mark.parametrize(
    ("template", "bound"),
    [
        ("SELECT '{a}'", "SELECT :a"),
        ("SELECT '%{a}%'", "SELECT '%' || :a || '%'"),
        ("SELECT 'it''s {a}'", "SELECT 'it''s ' || :a"),
        ("SELECT '', {a}", "SELECT '', :a"),
        ("SELECT {a} -- {a}'s\n", "SELECT :a -- a's\n"),
        ("SELECT {a} /* {a} ' */", "SELECT :a /* a ' */"),
    ],
)
def test_fields_become_bound_parameters(template, bound):
    text = f"class P:\n    plugin_id = 1\n    template = {template!r}\n"
    assert bind_query(parse_plugin_class(text, "p.py")).text == bound


@pytest.mark.parametrize("template", ["SELECT 1 FROM {a}", 'SELECT "{a}"', "SELECT '{a}"])
def test_what_cannot_be_bound_is_refused(template):
    text = f"class P:\n    plugin_id = 1\n    template = {template!r}\n"
    with pytest.raises(GuideError):
        bind_query(parse_plugin_class(text, "p.py"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2026-03-04T08:00:00Z", "2026-03-04 08:00:00"), ("8 Z", "8 Z"), ("", "")],
)
def test_timestamps_are_rewritten_as_the_original_does(value, expected):
    assert compat_timestamp(value) == expected


def test_names_and_blocks_of_the_markdown():
    assert base_name("Mail_WITH_PLUGIN_REFERENCES.md") == "Mail"
    assert base_name("Mail_WITH_REFERENCES.md") == "Mail"
    text = "a\n```sql<PLUGIN_1>\nSELECT 1\n```</PLUGIN_1>\nb"
    assert compact_text(text) == "a\n[query `plugin_1`]\nb"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("## Step 1 - A\n", "a title"),
        ("# T\n", "a title"),
        ("# T\n## Step 1 - A\n<PLUGIN_2>\nx\n", ":3: <PLUGIN_2> has no counterpart"),
        ("# T\n## Step 1 - A\n## Step 1 - B\n", ":3: Step1 is there twice"),
    ],
)
def test_markdown_of_another_form_is_refused(text, says):
    with pytest.raises(GuideError, match=says):
        parse_markdown(text, name="x.md", path="x.md")


def test_files_that_are_missing_or_do_not_fit_are_named(copy):
    with pytest.raises(GuideError, match="0 guides were found"):
        load_stepfly(copy / "plugins")
    with pytest.raises(GuideError, match="cannot be read"):
        load_incident(copy / "incidents" / "none.txt")
    (copy / "plugins/MailDelay/plugin_2.py").unlink()
    with pytest.raises(GuideError, match=r"MailDelay.md:.*plugin_2 is not in"):
        load_stepfly_queries(copy)
    (copy / "config/incident_tsg_map.json").write_text('{"1": "../x.md"}')
    with pytest.raises(GuideError, match="not a plain file name"):
        load_incident_map(copy / "config/incident_tsg_map.json")


def test_a_step_that_says_nothing_of_what_comes_next_is_refused_without_a_plan(copy):
    shutil.rmtree(copy / "TSGs/PlanDAGs")
    path = copy / "TSGs/MailDelay.md"
    path.write_text(path.read_text().replace("Note the largest depth and proceed to Step 5.", ""))
    with pytest.raises(GuideError, match="Step3 does not say what comes next"):
        load_stepfly(copy)


def dag_findings(copy: Path, old: str, new: str) -> set[str]:
    path = copy / "TSGs/PlanDAGs/MailDelay_plan_dag.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return {finding.rule for finding in lint_path(copy) if finding.path == "PlanDAGs/" + path.name}


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('"edge": "edge_Step3_Step5"', '"edge": "edge_Step3_Step4"', "edge-ends"),
        ("if no delay is longer than 600 seconds", "if the delay is low", "unquantified-condition"),
        ('"node": "Step5"', '"node": "Step6"', "missing-step"),
        ('{"nodes"', "{", "unreadable-guide"),
    ],
)
def test_mistakes_in_a_plan_are_told(copy, old, new, rule):
    if rule == "unreadable-guide":
        old = (copy / "TSGs/PlanDAGs/MailDelay_plan_dag.json").read_text()[:12]
    assert rule in dag_findings(copy, old, new)


def test_an_edge_name_that_lies_is_told(copy):
    path = copy / "TSGs/PlanDAGs/MailDelay_plan_dag.json"
    path.write_text(path.read_text().replace("edge_Step2_Step4", "edge_Step2_Step3b"))
    assert "edge-name" in {finding.rule for finding in lint_path(copy)}
    assert load_stepfly(copy).step("Step2").edges[1].target == "Step4"


def test_a_condition_that_does_not_count_is_told(copy):
    import json

    path = copy / "TSGs/PlanDAGs/MailDelay_plan_dag.json"
    data = json.loads(path.read_text())
    data["nodes"].insert(0, data["nodes"].pop())
    path.write_text(json.dumps(data, indent=2))
    assert "lost-condition" in {finding.rule for finding in lint_path(copy)}


def test_terminators_and_edges_to_end_go_together(copy):
    path = copy / "TSGs/MailDelay.md"
    text = path.read_text()
    path.write_text(text.replace("**This is a potential resolution.**", ""))
    assert "unmarked-termination" in {finding.rule for finding in lint_path(copy)}
    path.write_text(
        text.replace(
            "Note the largest depth and", "**This is a potential resolution.**\n\nNote and"
        )
    )
    assert "implicit-end" in {finding.rule for finding in lint_path(copy)}


def test_queries_in_the_text_are_checked(copy):
    path = copy / "TSGs/MailDelay.md"
    text = path.read_text()
    path.write_text(text.replace("ts >= '{start_time}'", "ts >= NOW() AND day = '2026-03-01'"))
    rules = {finding.rule for finding in lint_path(copy)}
    assert {"nondeterministic-query", "hard-coded-date"} <= rules
    path.write_text(text.replace("'%{relay}%'", "'%{realy}%'"))
    assert "undeclared-placeholder" in {finding.rule for finding in lint_path(copy)}
