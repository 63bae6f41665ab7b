"""Escaping where nothing can be bound: PromQL, regular expressions; SQL read into tokens."""

from __future__ import annotations

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import GuideError
from agentrt.workflows.queries import BadArgument, QueryTemplates
from agentrt.workflows.queries_sql import check_statement, placeholders, sql_tokens, to_format_style

PROMETHEUS = '[source.m]\ntype = "prometheus"\nurl = "http://127.0.0.1:9"\n'
LOG = '[source.l]\ntype = "log"\npath = "app.log"\n'
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def promql(text, **types):
    rows = "\n".join(f"{name} = {kind}" for name, kind in types.items())
    return QueryTemplates.parse(
        f"{PROMETHEUS}[query.q]\npromql = '''{text}'''\n[query.q.parameters]\n{rows}\n"
    )


def pattern(text, *names, kind="pattern"):
    rows = "\n".join(f'{name} = "string"' for name in names)
    return QueryTemplates.parse(
        f"{LOG}[query.q]\n{kind} = '''{text}'''\n[query.q.parameters]\n{rows}\n"
    )


STRING, NUMBER = '"string"', '"number"'

_GO = re.compile(r"\\(?:U([0-9a-f]{8})|(.))", re.DOTALL)


def unquoted(literal):
    """What Go reads in a quoted string: written from its grammar, apart from our code."""
    body = literal[1:-1]
    plain = re.sub(_GO, "", body)
    assert not set(plain) & {"\n", "\\", literal[0]}
    simple = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'"}
    return _GO.sub(lambda found: chr(int(found[1], 16)) if found[1] else simple[found[2]], body)


class TestPromql:
    @given(value=TEXTS)
    def test_a_string_is_one_literal_of_that_value(self, value):
        templates = promql('sum(up{job="{job}"}) by (x)', job=STRING)
        made = templates.bind("q", {"job": value}).statement
        assert made.startswith("sum(up{job=")
        assert made.endswith("}) by (x)")
        assert unquoted(made[len("sum(up{job=") : -len("}) by (x)")]) == value

    @given(value=TEXTS)
    def test_a_matcher_matches_only_that_value(self, value):
        made = promql("up{job=~'{job}'}", job=STRING).bind("q", {"job": value}).statement
        expression = unquoted(made[len("up{job=~") : -1])
        assert re.fullmatch(expression, value)
        assert not re.fullmatch(expression, value + "x")
        assert not re.fullmatch(expression, "x" + value)

    @pytest.mark.parametrize(
        ("kind", "value", "made"),
        [
            ("integer", 5, "up > 5"),
            ("number", -2.5, "up > (-2.5)"),
            ("duration", "5m", "up > 5m"),
        ],
    )
    def test_numbers_and_durations_go_bare(self, kind, value, made):
        assert promql("up > {x}", x=f'"{kind}"').bind("q", {"x": value}).statement == made

    def test_a_value_is_not_scanned_again(self):
        templates = promql('up{a="{a}",b="{b}"}', a=STRING, b=STRING)
        made = templates.bind("q", {"a": "{b}", "b": "2"}).statement
        assert made == 'up{a="{b}",b="2"}'

    @pytest.mark.parametrize(
        ("text", "kind", "message"),
        [
            ("up{a=`{x}`}", STRING, "raw text"),
            ("up # {x}", STRING, "comment"),
            ("up{x}", NUMBER, "touches a name"),
            ("{x}", STRING, "outside quotes"),
            ("up @ {x}", '{type = "timestamp"}', "outside quotes"),
        ],
    )
    def test_refuses_places_where_nothing_is_safe(self, text, kind, message):
        with pytest.raises(GuideError, match=message):
            promql(text, x=kind)

    def test_quotes_in_quotes_and_escapes_are_followed(self):
        templates = promql(r"""up{a="it's \" {x}",b='{x}'}""", x=STRING)
        made = templates.bind("q", {"x": '"'}).statement
        assert made == r"""up{a="it's \" \"",b='\"'}"""

    def test_a_missing_bare_value_is_named(self):
        templates = promql("up > {x}", x='{type = "number", required = false}')
        with pytest.raises(BadArgument, match="'x' has no value"):
            templates.bind("q")

    def test_a_range_needs_both_ends(self):
        with pytest.raises(GuideError, match="start and an end"):
            QueryTemplates.parse(f'{PROMETHEUS}[query.q]\npromql = "up"\nstart = "2026-03-01"\n')

    def test_the_window_is_checked(self):
        templates = QueryTemplates.parse(
            f'{PROMETHEUS}[query.q]\npromql = "up"\nstart = "{{a}}"\nend = "{{a}}"\n'
            'parameters = {a = {type = "string"}}\n'
        )
        bound = templates.bind("q", {"a": "1772359200000"})
        assert bound.start == bound.end == "2026-03-01T10:00:00Z"
        with pytest.raises(BadArgument, match="time window"):
            templates.bind("q", {"a": "whenever"})


class TestPattern:
    @given(value=TEXTS, around=st.sampled_from(["", "x"]))
    def test_a_value_matches_itself_and_nothing_else(self, value, around):
        made = pattern("^order={id}$", "id").bind("q", {"id": value}).statement
        assert re.fullmatch(made, f"order={value}", re.DOTALL)
        assert not re.search(made, f"order={value}{around}!")
        assert re.compile(made).groups == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[{x}]", "stands in a set"),
            (r"[^]\]{x}]", "stands in a set"),
            ("(?x) {x}", "the x flag"),
            ("(?ix:{x})", "the x flag"),
            ("(?# {x})", "comments"),
            ("({x}", "no regular expression"),
            ("(?P<{x}>a)", "no regular expression"),
            ("(?<={x}+)a", "no regular expression"),
        ],
    )
    def test_refuses_what_a_value_could_change(self, text, message):
        with pytest.raises(GuideError, match=message):
            pattern(text, "x")

    def test_braces_that_are_escaped_or_counts_stay(self):
        templates = pattern(r"\{x\} a{2} {y}", "y")
        assert templates.bind("q", {"y": "1"}).statement == r"\{x\} a{2} (?:1)"

    def test_quantifiers_apply_to_the_whole_value(self):
        made = pattern("^{x}+$", "x").bind("q", {"x": "ab"}).statement
        assert re.search(made, "abab")
        assert not re.search(made, "abb")

    @given(value=TEXTS)
    def test_contains_takes_the_value_as_it_is(self, value):
        templates = pattern("id={x};", "x", kind="contains")
        assert templates.bind("q", {"x": value}).statement == f"id={value};"


class TestSql:
    @given(st.text(alphabet="ab1'\"`[]$:;-/*\n E%?@(),.", max_size=60))
    def test_tokens_are_the_whole_statement(self, text):
        assert "".join(token.text for token in sql_tokens(text)) == text

    @pytest.mark.parametrize(
        "text",
        [
            "SELECT ':no' || \":no\" || `:no` FROM [:no] -- :no\n/* :no */ WHERE a = :yes",
            "SELECT a::int, x'00', $$ :no $$, $t$ :no $t$, E'\\' :no' FROM t WHERE b = :yes",
            "SELECT 'it''s :no', :yes, :yes;",
        ],
    )
    def test_placeholders_are_only_where_values_go(self, text):
        assert placeholders(text) == ["yes"]

    def test_the_driver_of_postgres_gets_its_own_style(self):
        made = to_format_style("SELECT a::int FROM t WHERE b LIKE 'x%:no' AND c % 2 = :yes")
        assert made == "SELECT a::int FROM t WHERE b LIKE 'x%%:no' AND c %% 2 = %(yes)s"
        values = {"yes": "%(no)s"}
        assert (made % values).endswith("= %(no)s")

    @pytest.mark.parametrize(
        "text",
        [
            "SELECT release, load, copy, lock FROM deployments",
            'WITH a AS (SELECT 1) SELECT "update", replace(x, 1, 2) FROM a;',
            "VALUES (1)",
            "SELECT ';' -- ; DROP TABLE t",
        ],
    )
    def test_reading_is_let_through(self, text):
        assert check_statement(text, "sqlite") is None

    @pytest.mark.parametrize(
        "text",
        [
            "SELECT 1 INTO t",
            "SELECT 1;;; SELECT 2",
            "/* */ PRAGMA writable_schema = 1",
            "ATTACH 'x' AS y",
            "explain select 1",
            "SELECT pg_read_file ('/etc/passwd')",
            'SELECT "writefile"(1)',
            "SELECT dblink_exec('x')",
            "WITH x AS (MERGE INTO t USING s ON true) SELECT 1",
        ],
    )
    def test_everything_else_is_not(self, text):
        assert check_statement(text, "postgres")

    def test_operators_of_postgres_are_no_placeholders(self):
        text = "SELECT a @> b, c ? 'd' FROM t"
        assert check_statement(text, "postgres") is None
        assert check_statement(text.replace("@>", "@b"), "sqlite")


def test_types_of_the_standard_library_agree_on_escapes():
    templates = promql('up{job="{job}"}', job=STRING)
    made = templates.bind("q", {"job": 'a"b\\c\n\x01é'}).statement
    assert ast.literal_eval(made[len("up{job=") : -1]) == 'a"b\\c\n\x01é'
