"""`agentrt guide test`, in process: what is compared, what leaks, the report for CI."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import anyio
import pytest

from agentrt.errors import GuideError
from agentrt.workflows.guides import open_guide, shipped_guides
from agentrt.workflows.guides.cases import Case, Expected, case_files, load_case
from agentrt.workflows.guides.telemetry import write_telemetry
from agentrt.workflows.lint import lint
from agentrt.workflows.models import ModelFailure
from agentrt.workflows.plan import make_plan
from agentrt.workflows.render import to_ascii, to_dot, to_mermaid, to_svg
from agentrt.workflows.testing import (
    CaseResult,
    RunSummary,
    check_case,
    check_guide,
    compare,
    leaks,
    to_junit,
)
from agentrt.workflows.testing_model import CaseModel

ALL = [(name, file) for name, path in shipped_guides().items() for file in case_files(path)]
SUMMARY = RunSummary("succeeded", ("Step1", "Step2"), "The cache is cold.")
CASE = Case(
    "X-1", "t", expected=Expected("succeeded", ("Step1", "Step2"), "CACHE is cold", "a restart")
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("guides")


@pytest.mark.parametrize(("name", "file"), ALL, ids=lambda value: getattr(value, "stem", value))
def test_every_incident_takes_the_expected_path_and_concludes(name, file, directory):
    result = anyio.run(check_case, shipped_guides()[name], file, directory)
    assert result.problems == ()
    assert result.summary.by.get("code", 0) > 0


@pytest.mark.parametrize("name", shipped_guides())
def test_every_shipped_guide_lints_clean_and_draws(name):
    guide = open_guide(shipped_guides()[name])
    assert lint(guide) == []
    plan = make_plan(guide)
    for draw in (to_mermaid, to_dot, to_svg, to_ascii):
        text = draw(plan)
        assert all(step in text for step in plan.steps)


def test_the_guide_within_a_guide_lints_clean():
    nested = shipped_guides()["checkout_outage"].parent / "slow_requests.md"
    assert lint(open_guide(nested)) == []


def test_at_least_one_prose_edge_is_decided_by_a_model():
    decided = [name for name, file in ALL if load_case(file).answers]
    assert len(set(decided)) >= 4


def test_nothing_differs():
    assert compare(CASE, SUMMARY) == []
    assert compare(replace(CASE, expected=None), SUMMARY) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"status": "failed", "reason": "why"}, r"ended failed \(why\), not succeeded"),
        ({"path": ("Step1",)}, "missing Step2"),
        ({"path": ("Step1", "Step2", "Step3")}, "not expected Step3"),
        ({"path": ("Step1",), "failed": {"Step2": "no data"}}, "Step2 failed: no data"),
        ({"conclusion": "Nothing was found."}, "does not say 'CACHE is cold'"),
    ],
)
def test_each_difference_is_named(change, complaint):
    problems = compare(CASE, replace(SUMMARY, **change))
    assert len(problems) == 1
    assert re.search(complaint, problems[0])


def test_an_answer_in_a_prompt_is_found_unless_the_guide_says_it():
    assert leaks(CASE, ["it was A Restart, clearly"], []) == [
        "a prompt holds the expected cause: 'a restart'"
    ]
    assert leaks(CASE, ["Step 4: the cache is cold"], ["Step 4: the cache is cold"]) == []
    assert len(leaks(CASE, ["Step 4: the cache is cold"], [])) == 1


def copied(name, tmp_path):
    """A team's own copy of a shipped guide, with its recording beside it."""
    source = shipped_guides()[name].parent
    target = tmp_path / name
    shutil.copytree(source, target)
    write_telemetry(target / "recording", name)
    return target / "guide.md"


def test_a_guide_of_ones_own_is_tested_on_the_recording_beside_it(tmp_path):
    path = copied("queue_backlog", tmp_path)
    results = anyio.run(check_guide, path)
    assert len(results) == 6
    assert all(result.passed for result in results)


def test_a_changed_threshold_is_caught(tmp_path):
    path = copied("queue_backlog", tmp_path)
    path.write_text(path.read_text().replace("depth) > 5000", "depth) > 5000000"))
    results = {result.case: result for result in anyio.run(check_guide, path)}
    assert results["QB-5"].passed
    assert not results["QB-1"].passed
    assert "missing Step2, Step4; not expected Step10" in results["QB-1"].problems[0]


def test_an_incident_whose_text_tells_the_answer_is_caught(tmp_path):
    path = copied("certificate_expiry", tmp_path)
    file = path.parent / "incidents" / "renewal_fails.toml"
    told = file.read_text().replace(
        "Clients warn about the certificate.", "The DNS challenge of the renewal job fails."
    )
    file.write_text(told)
    result = anyio.run(check_case, path, file, tmp_path / "out")
    assert any("a prompt holds the expected cause" in problem for problem in result.problems)


def test_a_query_that_fails_is_a_failed_incident(tmp_path):
    path = copied("disk_full", tmp_path)
    queries = path.parent / "queries.toml"
    queries.write_text(queries.read_text().replace("FROM disk_use AS now", "FROM nowhere AS now"))
    result = anyio.run(check_case, path, path.parent / "incidents" / "logs.toml", tmp_path / "out")
    assert result.summary.status != "succeeded"
    assert any("Step1 failed" in problem for problem in result.problems)


def test_a_guide_without_incidents_or_recording_is_refused(tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("# T\n\n## Step 1 - A\n\n<!-- Reaches A Final Conclusion: B. -->\n")
    with pytest.raises(GuideError, match="no incidents"):
        anyio.run(check_guide, path)


def test_the_scripted_model_says_which_answer_is_missing():
    model = CaseModel(Case("X-1", "t", answers={"Step1/edge_Step1_Step2": "enabled"}))
    asked = [{"role": "user", "content": "q"}]

    async def ask(context):
        return await model.choose(asked, ("enabled", "disabled"), context=context)

    assert anyio.run(ask, "Step1/edge_Step1_Step2").answer == "enabled"
    with pytest.raises(ModelFailure, match="no answer for Step2/edge"):
        anyio.run(ask, "Step2/edge_Step2_Step3")


def test_the_junit_report_counts_failures_by_guide():
    good = CaseResult("a", "A-1", "fine", "a.toml", SUMMARY)
    bad = CaseResult("b", "B-1", "<wrong>", "b.toml", SUMMARY, ("one & two", "three"))
    root = ElementTree.fromstring(to_junit([good, bad]))
    counts = {suite.get("name"): suite.get("failures") for suite in root}
    assert counts == {"a": "0", "b": "1"}
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == "one & two"
    assert failure.text == "one & two\nthree"
    assert [case.get("name") for case in root.iter("testcase")] == ["A-1 fine", "B-1 <wrong>"]
