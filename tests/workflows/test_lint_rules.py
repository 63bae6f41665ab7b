"""Every rule on a text that breaks it and on one, close to it, that does not."""

# One case a line reads best here.
# ruff: noqa: E501

import re

import pytest

from agentrt.workflows.lint import RULES, lint_text
from agentrt.workflows.lint_conditions import Conditions
from agentrt.workflows.lint_sql import selected_columns, sql_problems

GUIDE = """# Queues

Overview.

<!-- guide: queries=queries.toml -->

## Parameters

- `region` (string): where
- `since` (timestamp): from when

## Step 1 - Measure

### Instructions

Read the depth in {region}. More than 500 messages are too many.

### Queries

- `depth`

### Connections

- if `max(depth.value) > 500`: Step 2
- otherwise: Step 3

## Step 2 - Look at the consumers

### Instructions

Ask the owners whether a consumer was stopped.

### Connections

- if the owners stopped a consumer: Step 3
- otherwise: Step 4

## Step 3 - Conclude: fine

### Instructions

Close the alert.

### Connections

- end

<!-- Reaches A Final Conclusion: Nothing is wrong. -->

## Step 4 - Conclude: broken

### Instructions

Call the owners.

### Connections

- end

<!-- Reaches A Final Conclusion: Something is wrong. -->
"""

QUERIES = """[source.db]
type = "sqlite"
path = "db.sqlite"

[query.depth]
source = "db"
sql = "SELECT ts, value FROM depth WHERE region = :region AND ts >= :since"
parameters = { region = { type = "string" }, since = { type = "timestamp" } }

[query.rate]
source = "db"
sql = "SELECT ts, rate FROM rates WHERE region = :region"
parameters = { region = { type = "string" } }
"""

SQL = "ts >= :since"
ASK = "Ask the owners whether a consumer was stopped."
IF = "if the owners stopped a consumer"
CODED = "`max(depth.value) > 500`"

# rule: (replaced text, what breaks the rule, what does not)
CASES = {
    "ambiguous-reference": (ASK, "Ask about the above.", "Ask about values above 500."),
    "non-actionable-step": (ASK, "Owners are people.", "Poke {region} until it answers."),
    "missing-action": (ASK, "", "Ask."),
    "unquantified-condition": (IF, "if traffic is too high", "if traffic is higher than 500 a second"),
    "inconsistent-title": (
        "Conclude: broken",
        "Conclude: fine",
        "Conclude: fine again",
    ),
    "threshold-mismatch": ("More than 500", "More than 700", "More than 0.5 thousand or 500"),
    "dead-end": ("### Connections\n\n- if the owners stopped a consumer: Step 3\n- otherwise: Step 4\n", "", "### Connections\n\n- Step 4\n"),
    "unreachable-step": ("- otherwise: Step 4", "- otherwise: Step 3", "- otherwise: Step 4"),
    "no-path-to-end": (
        "- if the owners stopped a consumer: Step 3\n- otherwise: Step 4",
        "- Step 2",
        "- Step 4",
    ),
    "cycle": ("- otherwise: Step 4", "- otherwise: Step 1", "- otherwise: Step 4"),
    "missing-step": ("- otherwise: Step 4", "- otherwise: Step 5", "- otherwise: Step 4"),
    "missing-connection": (ASK, "Ask. Proceed to Step 1.", "Ask. Proceed to Step 4."),
    "not-exhaustive": (
        "- otherwise: Step 3",
        "- if `max(depth.value) < 500`: Step 3",
        "- if `max(depth.value) <= 500`: Step 3",
    ),
    "overlapping-conditions": (
        "- otherwise: Step 3",
        "- if `max(depth.value) > 400`: Step 3",
        "- if `max(depth.value) < 400`: Step 3\n- otherwise: Step 4",
    ),
    "impossible-condition": (
        CODED,
        "`max(depth.value) > 500 and max(depth.value) < 400`",
        "`max(depth.value) > 500 and max(depth.value) < 900`",
    ),
    "bad-predicate": (CODED, "`max(depth.value > 500`", "`max(depth.value) > 500 or depth.rows > 9`"),
    "duplicate-connection": (
        "- otherwise: Step 3",
        "- otherwise: Step 2",
        "- otherwise: Step 4",
    ),
    "useless-otherwise": ("- end", "- otherwise: end", "- end"),
    "parallel-claim": (
        ASK,
        "Ask. Steps 1 and 3 run in parallel.",
        "Ask. Steps 3 and 4 do not run in parallel.",
    ),
    "order-claim": (
        ASK,
        "Ask once Step 4 has finished.",
        "Ask once Step 1 has finished.",
    ),
    "implicit-end": ("### Connections\n\n- end\n\n<!-- Reaches A Final Conclusion: Nothing", "<!-- Reaches A Final Conclusion: Nothing", "### Connections\n\n- end\n\n<!-- Reaches A Final Conclusion: All"),
    "unknown-source": (CODED, "`max(rate.rate) > 500`", "`depth.rows > 500`"),
    "wrong-source": (ASK, "Compare the result of Step 4.", "Compare the result of Step 1."),
    "undeclared-placeholder": (ASK, "Ask about {zone}.", "Ask about {region} and ${HOME}."),
    "unused-parameter": (
        "- `region` (string): where",
        "- `zone` (string): which\n- `region` (string): where",
        "- `region` (string): which",
    ),
    "missing-parameter": ("- `since` (timestamp): from when\n", "", "- `since` (timestamp): when\n"),
    "unknown-argument": ("- `depth`", "- `depth` with limit=3", "- `depth` with since={since}"),
    "unknown-column": (CODED, "`max(depth.values) > 500`", "`depth.rows > 500`"),
    "unknown-query": ("- `depth`", "- `deep`", "- `depth`\n- `rate`"),
    "missing-title": ("# Queues\n", "", "# Queue\n"),
    "heading-format": ("## Step 2 - Look", "## Step 2: Look", "## Step 2 - A look"),
    "missing-section": (f"### Instructions\n\n{ASK}", ASK, f"### Instructions\n{ASK}"),
    "unclosed-block": (ASK, f"{ASK}\n```\nx", f"{ASK}\n```\nx\n```"),
    "duplicate-step-number": ("## Step 4", "## Step 3", "## Step 4"),
    "step-number-gap": ("Step 4", "Step 6", "Step 4"),
    "unmarked-termination": (
        "<!-- Reaches A Final Conclusion: Something is wrong. -->",
        "",
        "<!-- reaches a final conclusion: Something is wrong. -->",
    ),
    "unexpected-ending": (ASK, "Ask the owners and", "Ask the owners:\n- the first\n- the second"),
    "unreadable-guide": (
        "### Connections\n\n- end\n\n<!-- Reaches A Final Conclusion: Something",
        "### Connections\n\n- end\n\n### Policy\n\n- retrys: 3\n\n<!-- Reaches A Final Conclusion: Some",
        "### Connections\n\n- end\n\n### Policy\n\n- retries: 3\n\n<!-- Reaches A Final Conclusion: Some",
    ),
}  # fmt: skip

QUERY_CASES = {
    "hard-coded-date": (SQL, "ts >= '2026-03-01'", "ts >= :since AND v <> 2026"),
    "hard-coded-parameter": (
        "region = :region AND",
        "region = 'eu' AND",
        "region = :region AND state = 'open' AND",
    ),
    "nondeterministic-query": (SQL, "ts >= datetime('now')", "ts >= :since AND note = 'now on'"),
    "sql-syntax": ("SELECT ts, value", "SELECT ts, , value", "SELECT ts, value AS v, value"),
    "sql-not-read-only": ("SELECT ts, value", "DELETE", "SELECT ts, replace(a, 'x', 'y') AS value"),
    "wrong-dialect": (SQL, "ts >= date_trunc('day', :since)", "ts >= strftime('%s', :since)"),
    "missing-placeholder": (SQL, "ts >= :after", "ts >= :since AND ts <> :since"),
    "quoted-placeholder": (SQL, "ts >= ':since'", "ts >= :since || ''"),
    "missing-source": ('source = "db"\nsql = "SELECT ts, value', 'sql = "SELECT ts, value', 'source = "db"\nsql = "SELECT ts, value'),
}  # fmt: skip

PLAN_ONLY = {"edge-name", "edge-ends", "lost-condition"}
"""Rules on PlanDAG files: see test_stepfly_malformed.py."""


def rules_of(tmp_path, guide: str, queries: str) -> list[str]:
    (tmp_path / "queries.toml").write_text(queries, encoding="utf-8")
    findings = lint_text(guide, path=str(tmp_path / "guide.md"))
    assert all(finding.line > 0 and finding.suggestion for finding in findings)
    return [finding.rule for finding in findings]


def test_the_base_is_clean_and_every_rule_has_a_case(tmp_path):
    assert rules_of(tmp_path, GUIDE, QUERIES) == []
    assert set(CASES) | set(QUERY_CASES) | PLAN_ONLY | {"model"} == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_on_the_guide(tmp_path, rule):
    old, wrong, right = CASES[rule]
    assert old in GUIDE
    assert rule in rules_of(tmp_path, GUIDE.replace(old, wrong), QUERIES)
    assert rule not in rules_of(tmp_path, GUIDE.replace(old, right), QUERIES)


@pytest.mark.parametrize("rule", QUERY_CASES)
def test_a_rule_on_the_queries(tmp_path, rule):
    old, wrong, right = QUERY_CASES[rule]
    assert old in QUERIES
    assert rule in rules_of(tmp_path, GUIDE, QUERIES.replace(old, wrong))
    assert rule not in rules_of(tmp_path, GUIDE, QUERIES.replace(old, right))


POSTGRES = [
    ("SELECT a FROM t WHERE (a = 1", "not closed"),
    ("SELECT a FROM t WHERE a = 'x", "quote"),
    ("SELECT a FROM t ORDER BY a WHERE b = 1", "WHERE stands after ORDER"),
    ("SELECT a, FROM t", "FROM"),
    ("SELECT a FROM t WHERE", "where"),
    ("SELECT a FROM t GROUP a", "without BY"),
    ("SELECT a WHERE b = 1", "without FROM"),
    ("SELECT a)) FROM t", "was not opened"),
]


@pytest.mark.parametrize(("text", "says"), POSTGRES)
def test_postgres_statements_with_mistakes(text, says):
    problems = list(sql_problems(text, "postgres"))
    assert [problem.rule for problem in problems] == ["sql-syntax"]
    assert says in problems[0].message


@pytest.mark.parametrize(
    "text",
    [
        "WITH a AS (SELECT x FROM t WHERE y > 1 ORDER BY x LIMIT 3) SELECT x FROM a ORDER BY x",
        "SELECT extract(day FROM ts) AS day, count(*) FILTER (WHERE ok) FROM t GROUP BY 1",
        "SELECT a FROM t UNION ALL SELECT b FROM u WHERE c IN (SELECT d FROM v)",
        "SELECT rank() OVER (PARTITION BY a ORDER BY b) FROM t WHERE c::text LIKE 'x%'",
        "SELECT a FROM t JOIN u ON t.id = u.id AND u.b BETWEEN 1 AND 2 ORDER BY a DESC LIMIT 1 OFFSET 2",
        "SELECT CASE WHEN a > 1 THEN 'from' ELSE '(' END AS \"where\" FROM t -- where (",
    ],
)
def test_postgres_statements_without(text):
    assert list(sql_problems(text, "postgres")) == []


def test_a_schema_tells_columns_that_are_not_there(tmp_path):
    schema = {"db": "CREATE TABLE depth (ts, val, region); CREATE TABLE rates (ts, rate, region);"}
    (tmp_path / "queries.toml").write_text(QUERIES, encoding="utf-8")
    findings = lint_text(GUIDE, path=str(tmp_path / "guide.md"), schema=schema)
    assert [(each.rule, each.line, each.path) for each in findings] == [
        ("unknown-column", 7, "queries.toml")
    ]
    schema["db"] = schema["db"].replace("val,", "value,")
    assert lint_text(GUIDE, path=str(tmp_path / "guide.md"), schema=schema) == []


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("SELECT a, t.b, sum(c) AS d FROM t", {"a", "b", "d"}),
        ('SELECT DISTINCT "A" FROM t', {"a"}),
        ("SELECT * FROM t", None),
        ("SELECT count(*) FROM t", None),
        ("WITH a AS (SELECT 1) SELECT x FROM a", None),
    ],
)
def test_columns_of_a_statement(text, columns):
    assert selected_columns(text) == (None if columns is None else frozenset(columns))


@pytest.mark.parametrize(
    ("texts", "open_case", "overlaps"),
    [
        (["max(a.b) > 5", "max(a.b) <= 5"], False, 0),
        (["max(a.b) > 5", "max(a.b) < 5"], True, 0),
        (["5 < max(a.b)", "not max(a.b) > 5"], False, 0),
        (["a.rows == 0", "a.rows >= 1"], False, 0),
        (["a.rows < 1", "a.rows > 0"], False, 0),
        (["x > 1", "x > 0 and x < 3", "x <= 0"], False, 1),
        (["s == 'a'", "s in ['b', 'c']"], True, 0),
        (["s == 'a'", "s != 'a'"], False, 0),
        (["any(a.b > 3)", "not any(a.b > 3)"], False, 0),
        (["1 < x < 3", "x <= 1 or x >= 3"], False, 0),
        (["x > 5", "y > 5"], True, 0),
    ],
)
def test_cases_of_conditions(texts, open_case, overlaps):
    conditions = Conditions(texts)
    assert (conditions.uncovered() is not None) == open_case
    assert len(list(conditions.overlaps())) == overlaps
    assert conditions.impossible() == []


def test_any_text_is_linted_without_an_exception():
    lines = re.split(r"\n", GUIDE)
    for cut in range(0, len(lines), 3):
        assert isinstance(lint_text("\n".join(lines[cut:])), list)
        assert isinstance(lint_text("\n".join(lines[:cut])), list)
    assert lint_text("") == []
