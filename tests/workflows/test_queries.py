"""Query templates: what a file may say, how values are bound, and that they stay values."""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import GuideError
from agentrt.workflows.queries import BadArgument, QueryFailed, QueryTemplates, QueryTimeout

FILE = """
[source.telemetry]
type = "sqlite"
path = "telemetry.db"

[query.queue_depth]
source = "telemetry"
description = "Depth of every queue"
sql = '''
SELECT ts, queue, depth FROM queue_depth
WHERE ts BETWEEN :start_time AND :end_time AND region = :region ORDER BY ts LIMIT :limit
'''

[query.queue_depth.parameters]
start_time = {type = "timestamp"}
end_time = {type = "timestamp", default = "2026-03-02"}
region = {type = "string", default = "eu"}
limit = {type = "integer", minimum = 1, maximum = 1000, default = 100}
"""


@pytest.fixture
def folder(tmp_path):
    database = sqlite3.connect(tmp_path / "telemetry.db")
    database.execute("CREATE TABLE queue_depth (ts, queue, depth, region)")
    rows = [(f"2026-03-01T10:{i:02}:00Z", "orders", i * 100, "eu") for i in range(50)]
    database.executemany("INSERT INTO queue_depth VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    (tmp_path / "queries.toml").write_text(FILE)
    return tmp_path


@pytest.fixture
def templates(folder):
    return QueryTemplates.load(folder / "queries.toml")


def one(sql="SELECT :x AS x", parameters='x = {type = "string"}', extra=""):
    """A file with one SQLite query."""
    return (
        '[source.db]\ntype = "sqlite"\npath = "telemetry.db"\n'
        f"[query.q]\nsql = '''{sql}'''\n{extra}\n[query.q.parameters]\n{parameters}\n"
    )


class TestRun:
    def test_answers(self, templates):
        bound = templates.bind("queue_depth", {"start_time": "2026-03-01 10:05", "limit": "3"})
        result = templates.run(bound)
        assert result.columns == ("ts", "queue", "depth")
        assert [row[2] for row in result.rows] == [500, 600, 700]
        assert not result.truncated

    def test_takes_from_the_context_what_it_declares(self, templates):
        context = {"start_time": "2026-03-01", "service": "checkout", "region": "us"}
        bound = templates.bind("queue_depth", {"region": "eu"}, context=context)
        assert bound.values == {
            "start_time": "2026-03-01T00:00:00Z",
            "end_time": "2026-03-02T00:00:00Z",
            "region": "eu",
            "limit": 100,
        }

    def test_the_same_from_json(self, folder, templates):
        data = {
            "source": {"telemetry": {"type": "sqlite", "path": "telemetry.db"}},
            "query": {
                "queue_depth": {
                    "source": "telemetry",
                    "sql": templates.query("queue_depth").text,
                    "parameters": {
                        "start_time": "timestamp",
                        "end_time": "timestamp",
                        "region": "string",
                        "limit": "integer",
                    },
                }
            },
        }
        (folder / "queries.json").write_text(json.dumps(data))
        loaded = QueryTemplates.load(folder / "queries.json")
        values = {"start_time": "2026-03-01", "end_time": "2026-03-02", "region": "eu", "limit": 9}
        assert len(loaded.run(loaded.bind("queue_depth", values)).rows) == 9

    def test_describes_what_it_asks(self, templates):
        bound = templates.bind("queue_depth", {"start_time": "2026-03-01"})
        other = templates.bind("queue_depth", {"start_time": "2026-03-01", "region": "us"})
        told = bound.describe()
        assert json.loads(json.dumps(told)) == told
        assert (told["query"], told["source"], told["kind"]) == ("queue_depth", "telemetry", "sql")
        assert bound.digest != other.digest
        same = templates.bind("queue_depth", {"start_time": "2026-03-01T00:00:00+00:00"})
        assert bound.digest == same.digest

    def test_recordings_can_take_the_place_of_a_source(self, folder, templates):
        answer = {"queue_depth": {"columns": ["depth"], "rows": [[7]]}}
        (folder / "recorded.json").write_text(json.dumps(answer))
        recorded = templates.with_sources(
            {"telemetry": {"type": "recorded", "path": "recorded.json"}}
        )
        bound = recorded.bind("queue_depth", {"start_time": "2026-03-01"})
        assert recorded.run(bound).rows == ((7,),)
        assert recorded.fingerprint != templates.fingerprint
        with pytest.raises(GuideError, match="no source 'metrics'"):
            templates.with_sources({"metrics": {"type": "sqlite", "path": "x"}})

    def test_fingerprint_ignores_where_a_query_stands(self, folder, templates):
        (folder / "moved.toml").write_text("\n\n" + FILE)
        assert QueryTemplates.load(folder / "moved.toml").fingerprint == templates.fingerprint
        (folder / "other.toml").write_text(FILE.replace("ORDER BY ts", "ORDER BY depth"))
        assert QueryTemplates.load(folder / "other.toml").fingerprint != templates.fingerprint


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "'start_time' has no value"),
            ({"start_time": "soon"}, "no time such as"),
            ({"start_time": "2026-03-01", "limit": 0}, "at least 1"),
            ({"start_time": "2026-03-01", "limit": "1e3"}, "no whole number"),
            ({"start_time": "2026-03-01", "limit": True}, "no whole number"),
            ({"start_time": "2026-03-01", "limit": 2**80}, "64 bits"),
            ({"start_time": "2026-03-01", "region": "x" * 5000}, "5000 characters"),
            ({"start_time": "2026-03-01", "region": ["eu"]}, "no text"),
            ({"start_time": "2026-03-01", "region": "\ud800"}, "lone surrogate"),
            ({"start_time": "2026-03-01", "regoin": "eu"}, "takes no 'regoin'"),
        ],
    )
    def test_are_checked(self, templates, arguments, message):
        with pytest.raises(BadArgument, match=message) as caught:
            templates.bind("queue_depth", arguments)
        assert caught.value.remedy

    @pytest.mark.parametrize(
        ("kind", "given", "bound"),
        [
            ("string", 5, "5"),
            ("integer", " 12 ", 12),
            ("integer", 3.0, 3),
            ("number", "1e3", 1000.0),
            ("boolean", "Yes", True),
            ("boolean", False, False),
            ("duration", "1h30m", "1h30m"),
            ("duration", 90, "90s"),
            ("timestamp", "2026-03-01T12:00:00+02:00", "2026-03-01T10:00:00Z"),
            ("timestamp", "2026-03-01 10:00:00.250", "2026-03-01T10:00:00.250000Z"),
            ("timestamp", 0, "1970-01-01T00:00:00Z"),
        ],
    )
    def test_are_converted(self, folder, kind, given, bound):
        text = one(parameters=f'x = {{type = "{kind}"}}')
        loaded = QueryTemplates.parse(text, path=str(folder / "q.toml"))
        assert loaded.bind("q", {"x": given}).values == {"x": bound}

    @pytest.mark.parametrize(
        ("form", "bound"),
        [
            ("space", "2026-03-01 10:00:00"),
            ("epoch", 1772359200),
            ("epoch_ms", 1772359200000),
        ],
    )
    def test_timestamps_take_the_form_of_the_source(self, form, bound):
        text = one(parameters=f'x = {{type = "timestamp", format = "{form}"}}')
        values = QueryTemplates.parse(text).bind("q", {"x": "2026-03-01T10:00:00Z"}).values
        assert values == {"x": bound}

    @pytest.mark.parametrize("value", ["nan", "inf", "1_0", "", "0x10", True])
    def test_numbers_are_finite_decimals(self, value):
        loaded = QueryTemplates.parse(one(parameters='x = {type = "number"}'))
        with pytest.raises(BadArgument):
            loaded.bind("q", {"x": value})

    def test_choices_are_closed(self):
        text = one(parameters='x = {type = "string", choices = ["eu", "us"]}')
        loaded = QueryTemplates.parse(text)
        assert loaded.bind("q", {"x": "us"}).values == {"x": "us"}
        with pytest.raises(BadArgument, match="one of: eu, us"):
            loaded.bind("q", {"x": "US"})

    def test_an_optional_one_may_be_left_out(self, folder):
        text = one(parameters='x = {type = "integer", required = false}')
        loaded = QueryTemplates.parse(text, path=str(folder / "q.toml"))
        assert loaded.run(loaded.bind("q")).rows == ((None,),)

    def test_a_path_stays_in_the_folder(self, folder):
        text = one().replace('"telemetry.db"', '"{x}.db"')
        loaded = QueryTemplates.parse(text, path=str(folder / "q.toml"))
        assert loaded.run(loaded.bind("q", {"x": "telemetry"})).rows == (("telemetry",),)
        for outside in ("../telemetry", "/etc/passwd", "a/../../b"):
            with pytest.raises(BadArgument, match="leads out of"):
                loaded.bind("q", {"x": outside})


class TestFile:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[query.q", r"q\.toml:1: .*end of document"),
            ("\nx = = 1", r"q\.toml:2: .*line 2"),
            ("x = 1", "no section 'x'"),
            ("query = 3", "query is no table"),
            ("\n[query.q]\nsql = 'SELECT 1'", r"q\.toml:2: .*its source None is not there"),
            ('[source.s]\ntype = "oracle"', r"q\.toml:1: .*type 'oracle'"),
            ('[source.s]\ntype = "sqlite"', "does not say where it is"),
            ('[source.s]\ntype = "sqlite"\npath = "a"\nuser = "b"', "'user' of the source 's'"),
            (one(sql=""), "'sql' is no text"),
            (one(extra="colour = 1"), "'colour' is no setting"),
            (one(extra="row_limit = 0"), "row_limit is 0"),
            (one(extra="time_limit = true"), "time_limit is True"),
            (one(extra="promql = 'up'"), "it has sql and promql"),
            (one(parameters=""), "'x' is used but not declared"),
            (one(sql="SELECT 1"), "'x' is declared but not used"),
            (one(parameters='x = {type = "money"}'), "type 'money'"),
            (one(parameters='x = {type = "string", minimum = 1}'), "no number but has bounds"),
            (one(parameters='x = {type = "integer", default = "a"}'), "a default is wrong"),
            (one(parameters='x = {type = "timestamp", format = "x"}'), "format 'x'"),
            (one(parameters='x = {kind = "string"}'), "'kind' is no setting"),
            (one(sql="DELETE FROM t WHERE a = :x"), "starts with SELECT, WITH or VALUES"),
            (one(sql="SELECT :x; DROP TABLE t"), "several statements"),
            (one(sql="WITH a AS (DELETE FROM t RETURNING :x) SELECT 1"), "DELETE does more"),
            (one(sql="SELECT load_extension(:x)"), "load_extension does more"),
            (one(sql="SELECT ? + :x"), "another style"),
            (one(sql="-- :x"), "the statement is empty"),
        ],
    )
    def test_is_checked_when_it_is_read(self, text, message):
        with pytest.raises(GuideError, match=message) as caught:
            QueryTemplates.parse(text, path="q.toml")
        assert caught.value.remedy

    def test_bad_json_names_its_line(self):
        with pytest.raises(GuideError, match=r"q\.json:2"):
            QueryTemplates.parse('{"query":\n nonsense}', path="q.json")

    def test_must_be_there(self, tmp_path):
        with pytest.raises(GuideError, match="cannot be read"):
            QueryTemplates.load(tmp_path / "none.toml")

    def test_an_unknown_query_is_answered_with_the_known(self, templates):
        with pytest.raises(GuideError, match="The file has: queue_depth"):
            templates.bind("queue_dept", {})

    def test_knows_lines_of_queries(self, templates):
        assert templates.query("queue_depth").line == 6
        assert templates.sources["telemetry"].line == 2

    @given(st.text(alphabet="[]=.'\"\n querysouc{}:SELECT1-#", max_size=60))
    def test_any_text_is_read_or_refused(self, text):
        try:
            QueryTemplates.parse(text, path="q.toml")
        except GuideError:
            return


def test_failures_are_one_family():
    assert issubclass(BadArgument, QueryFailed)
    assert issubclass(BadArgument, ValueError)
    assert issubclass(QueryTimeout, QueryFailed)
    assert issubclass(QueryTimeout, TimeoutError)


NASTY = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["'; DROP TABLE t; --", '" OR 1=1', "\\", "a'||(SELECT 1)||'", ":x", "%s", "\x00", "{x}"]
    ),
)


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A query that answers with its own parameter, beside a table that must stay as it is."""
    folder = tmp_path_factory.mktemp("echo")
    database = sqlite3.connect(folder / "telemetry.db")
    database.execute("CREATE TABLE t (a)")
    database.execute("INSERT INTO t VALUES ('kept')")
    database.commit()
    database.close()
    sql = "SELECT :x AS x, (SELECT group_concat(a) FROM t) AS kept, ':x' AS literal"
    return QueryTemplates.parse(one(sql=sql), path=str(folder / "q.toml"))


@settings(max_examples=300, deadline=None)
@given(value=NASTY)
def test_every_text_comes_back_and_changes_nothing(echo, value):
    bound = echo.bind("q", {"x": value})
    assert bound.statement == echo.query("q").text
    result = echo.run(bound)
    assert result.columns == ("x", "kept", "literal")
    assert result.rows == ((value, "kept", ":x"),)
