"""Findings as SARIF and JSON; fixes; a model's remarks."""

import asyncio
import json

import pytest

from agentrt.errors import GuideError
from agentrt.workflows.lint import (
    RULES,
    apply_fixes,
    lint_path,
    lint_text,
    lint_with_model,
    to_json,
    to_sarif,
)
from agentrt.workflows.lint_ask import read_remarks
from agentrt.workflows.models import ModelFailure, ScriptedModel
from agentrt.workflows.parse import parse_guide
from tests.workflows.test_lint_rules import GUIDE, QUERIES

BROKEN = (
    GUIDE.replace("## Step 2 - Look", "##step 2: Look")
    .replace("<!-- Reaches A Final Conclusion: Something is wrong. -->", "")
    .replace("- otherwise: Step 3", "- otherwise: Step 3\n- otherwise: Step 3")
    .replace("depth in {region}", "depth in {regoin}")
)


def test_sarif_names_rule_place_and_fix():
    findings = lint_text(BROKEN)
    log = to_sarif(findings, "guides/queue.md")
    assert json.loads(json.dumps(log)) == log
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert {rule["id"] for rule in rules} == set(RULES)
    assert len(run["results"]) == len(findings)
    for result, finding in zip(run["results"], findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.rule
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "guides/queue.md"
        assert place["region"]["startLine"] == finding.line
        assert result["level"] in ("warning", "error")
        assert ("fixes" in result) == (finding.fix is not None)
    fix = next(result["fixes"] for result in run["results"] if "fixes" in result)
    (replacement,) = fix[0]["artifactChanges"][0]["replacements"]
    assert replacement["deletedRegion"]["endLine"] >= replacement["deletedRegion"]["startLine"]


def test_json_counts_by_category(tmp_path):
    (tmp_path / "guide.md").write_text(GUIDE, encoding="utf-8")
    (tmp_path / "queries.toml").write_text(QUERIES.replace(":since", "'2026-01-01'"))
    findings = lint_path(tmp_path / "guide.md")
    data = json.loads(to_json(findings, "a/guide.md"))
    assert data["summary"]["total_issues"] == len(findings) == len(data["issues"])
    assert sum(data["summary"]["by_category"].values()) == len(findings)
    assert data["issues"][0]["file"] == "a/queries.toml"
    assert data["issues"][0]["category"] == "DI"


def test_fixes_repair_what_is_mechanical_and_then_change_nothing():
    findings = lint_text(BROKEN)
    fixed = apply_fixes(BROKEN, findings)
    assert apply_fixes(fixed, findings) == fixed
    after = lint_text(fixed)
    assert len(after) < len(findings)
    for _ in range(5):
        fixed = apply_fixes(fixed, after)
        after = lint_text(fixed)
    assert apply_fixes(fixed, after) == fixed
    assert not any(finding.fix for finding in after)
    assert parse_guide(fixed, name="fixed").step("Step2").title == "Look at the consumers"


def test_a_text_without_findings_is_left_alone():
    assert apply_fixes(GUIDE, []) == GUIDE
    assert apply_fixes("a\r\nb", []) == "a\nb"


REMARK = {
    "line_number": 16,
    "category": "CP",
    "issue_type": "unclear",
    "description": "Which depth?",
    "suggestion": "Say which.",
}


def asked(answer, known=()):
    guide = parse_guide(GUIDE, name="queues")
    return asyncio.run(lint_with_model(guide, ScriptedModel({"lint": answer}), known))


def test_a_models_remarks_are_added_and_marked():
    known = lint_text(BROKEN)
    answer = "```json\n" + json.dumps({"issues": [REMARK]}) + "\n```"
    findings = asked(answer, known)
    (remark,) = [finding for finding in findings if finding.source == "model"]
    assert (remark.line, remark.category, remark.rule) == (16, "CP", "model")
    assert [finding for finding in findings if finding.source == "lint"] == known


@pytest.mark.parametrize(
    "change",
    [
        {"line_number": 0},
        {"line_number": 10_000},
        {"line_number": "16"},
        {"line_number": True},
        {"category": "XX"},
        {"description": ""},
        {"description": None},
        {"suggestion": 4},
    ],
)
def test_a_remark_that_fits_nowhere_is_left_out(change):
    assert asked(json.dumps({"issues": [{**REMARK, **change}, "text"]})) == []


def test_what_is_known_is_not_told_twice():
    findings = lint_text(BROKEN)
    first = next(finding for finding in findings if not finding.path)
    again = {**REMARK, "line_number": first.line, "category": first.category}
    assert len(asked(json.dumps({"issues": [again]}), findings)) == len(findings)


@pytest.mark.parametrize("answer", ["no", "[]", '{"issues": 3}', ""])
def test_nonsense_is_an_error_by_name(answer):
    with pytest.raises(GuideError, match="cannot be read"):
        read_remarks(answer, 10)


def test_a_model_that_fails_is_not_hidden():
    with pytest.raises(ModelFailure):
        asked(ModelFailure("timeout", "Too late.", remedy="Wait."))
