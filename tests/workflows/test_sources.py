"""Sources: SQLite, log files and recordings are read-only, limited, and end when they must."""

from __future__ import annotations

import gzip
import hashlib
import json
import sqlite3
import threading
import time

import pytest

from agentrt.workflows.queries import QueryFailed, QueryTemplates, QueryTimeout
from agentrt.workflows.sources_log_scan import scan


class Fixed:
    """A clock that a test moves: ``step`` seconds with every look at it."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "t.db"
    made = sqlite3.connect(path)
    made.execute("CREATE TABLE t (n, text)")
    made.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"row {i}") for i in range(100)])
    made.commit()
    made.close()
    return path


def sqlite_query(folder, sql, settings=""):
    return QueryTemplates.parse(
        f"[source.db]\ntype = 'sqlite'\npath = 't.db'\n[query.q]\nsql = '''{sql}'''\n{settings}\n",
        path=str(folder / "q.toml"),
    )


def ask(templates, arguments=None, **how):
    return templates.run(templates.bind("q", arguments), **how)


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


class TestSqlite:
    @pytest.mark.parametrize(("limit", "rows", "more"), [(99, 99, True), (100, 100, False)])
    def test_keeps_at_most_the_limit_and_says_so(self, database, limit, rows, more):
        templates = sqlite_query(database.parent, "SELECT n FROM t", f"row_limit = {limit}")
        result = ask(templates)
        assert (len(result.rows), result.truncated) == (rows, more)

    def test_an_endless_query_is_stopped_at_its_limit(self, database):
        templates = sqlite_query(database.parent, ENDLESS, "time_limit = 5")
        with pytest.raises(QueryTimeout, match="stopped after 5 s"):
            ask(templates, clock=Fixed(step=1))

    def test_a_cancelled_query_is_stopped(self, database):
        templates = sqlite_query(database.parent, ENDLESS, "time_limit = 60")
        cancelled = threading.Event()
        timer = threading.Timer(0.05, cancelled.set)
        timer.start()
        with pytest.raises(QueryTimeout, match="was cancelled"):
            ask(templates, cancelled=cancelled)
        timer.join()

    @pytest.mark.parametrize(
        ("sql", "message"),
        [
            ("SELECT * FROM nowhere", "no such table"),
            ("SELECT zeroblob(100000000)", "too big"),
            ("SELECT n FROM pragma_table_info('t')", "not authorized|prohibited|no such column"),
        ],
    )
    def test_names_what_sqlite_says(self, database, sql, message):
        with pytest.raises(QueryFailed, match=message) as caught:
            ask(sqlite_query(database.parent, sql))
        assert not isinstance(caught.value, QueryTimeout)

    def test_the_second_fence_holds_without_the_first(self, database, monkeypatch):
        """Even a statement that the template check had missed cannot write."""
        before = hashlib.sha256(database.read_bytes()).hexdigest()
        monkeypatch.setattr(
            "agentrt.workflows.queries_read.check_statement", lambda text, dialect: None
        )
        for sql in (
            "DELETE FROM t",
            "INSERT INTO t VALUES (1, 2)",
            "CREATE TEMP TABLE x (a)",
            "PRAGMA query_only = OFF",
            "ATTACH DATABASE ''new.db'' AS new".replace("''", '"'),
            "VACUUM",
            "SELECT load_extension('x')",
            "SELECT 1; DELETE FROM t",
        ):
            with pytest.raises(QueryFailed):
                ask(sqlite_query(database.parent, sql))
        assert hashlib.sha256(database.read_bytes()).hexdigest() == before
        assert sorted(path.name for path in database.parent.iterdir()) == ["t.db"]

    def test_a_missing_file_is_not_made(self, tmp_path):
        with pytest.raises(QueryFailed, match="has no file"):
            ask(sqlite_query(tmp_path, "SELECT 1"))
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_none(self, tmp_path):
        (tmp_path / "t.db").write_bytes(b"no database" * 100)
        with pytest.raises(QueryFailed, match="not a database"):
            ask(sqlite_query(tmp_path, "SELECT * FROM t"))

    def test_columns_of_one_name_are_told_apart(self, database):
        result = ask(sqlite_query(database.parent, "SELECT 1 AS a, 2 AS a, 3 AS a, 4 AS a_2"))
        assert result.columns == ("a", "a_2", "a_3", "a_2_2")

    def test_text_that_is_not_utf8_is_shown(self, database):
        result = ask(sqlite_query(database.parent, "SELECT CAST(x'ff41' AS TEXT) AS a"))
        assert result.rows == (("\ufffdA",),)

    def test_a_path_with_odd_characters(self, tmp_path, database):
        odd = tmp_path / "a?b#c %41"
        odd.mkdir()
        database.rename(odd / "t.db")
        assert ask(sqlite_query(odd, "SELECT count(*) FROM t")).rows == ((100,),)


LINES = """\
2026-03-01T10:00:00Z INFO  start order=1
2026-03-01T10:01:00Z ERROR failed order=17 code=500
Traceback of order=17
2026-03-01T10:02:00Z ERROR failed order=170 code=502
2026-03-01 10:03:00,250 ERROR failed order=17 code=503
2026-03-01T12:04:00+02:00 WARN order=17 code=504
"""


def log_query(folder, settings, parameters=""):
    return QueryTemplates.parse(
        f"[source.l]\ntype = 'log'\npath = 'app.log'\n[query.q]\n{settings}\n"
        f"[query.q.parameters]\n{parameters}\n",
        path=str(folder / "q.toml"),
    )


@pytest.fixture
def log(tmp_path):
    (tmp_path / "app.log").write_text(LINES)
    return tmp_path


class TestLog:
    def test_named_groups_become_columns(self, log):
        templates = log_query(
            log,
            r"pattern = '(?P<level>[A-Z]{4,}) +.*order={id}\b.*code=(?P<code>\d+)'",
            'id = "string"',
        )
        result = ask(templates, {"id": "17"})
        assert result.columns == ("line", "ts", "level", "code")
        assert result.rows == (
            (2, "2026-03-01T10:01:00Z", "ERROR", "500"),
            (5, "2026-03-01T10:03:00.250000Z", "ERROR", "503"),
            (6, "2026-03-01T10:04:00Z", "WARN", "504"),
        )

    def test_a_plain_text_is_no_pattern(self, log):
        templates = log_query(log, "contains = '{text}'", 'text = "string"')
        assert [row[0] for row in ask(templates, {"text": "order=17"}).rows] == [2, 3, 4, 5, 6]
        assert ask(templates, {"text": "order=.*"}).rows == ()
        ignoring = log_query(log, "contains = 'error'\nignore_case = true")
        assert len(ask(ignoring).rows) == 3

    def test_a_window_holds_lines_without_a_time_of_their_own(self, log):
        templates = log_query(
            log,
            "contains = 'order'\nstart = '{start}'\nend = '{end}'",
            'start = "timestamp"\nend = "timestamp"',
        )
        window = {"start": "2026-03-01 10:01", "end": "2026-03-01T10:03:00Z"}
        assert [row[0] for row in ask(templates, window).rows] == [2, 3, 4]

    def test_a_limit_cuts(self, log):
        result = ask(log_query(log, "contains = 'order'\nrow_limit = 2"))
        assert (len(result.rows), result.truncated) == (2, True)
        whole = ask(log_query(log, "contains = 'order'\nrow_limit = 6"))
        assert (len(whole.rows), whole.truncated) == (6, False)

    def test_a_pattern_that_backtracks_forever_is_killed(self, log):
        (log / "app.log").write_text("a" * 60 + "!\n")
        templates = log_query(log, "pattern = '(a+)+$'\ntime_limit = 0.5")
        with pytest.raises(QueryTimeout, match=r"stopped after 0\.5 s"):
            ask(templates)

    def test_a_cancelled_scan_is_killed(self, log):
        (log / "app.log").write_text("a" * 60 + "!\n")
        cancelled = threading.Event()
        cancelled.set()
        with pytest.raises(QueryTimeout, match="cancelled"):
            ask(log_query(log, "pattern = '(a+)+$'"), cancelled=cancelled)

    def test_failures_are_named(self, tmp_path):
        with pytest.raises(QueryFailed, match="has no file"):
            ask(log_query(tmp_path, "contains = 'x'"))
        (tmp_path / "app.log").write_text("x")
        unknown = QueryTemplates.parse(
            "[source.l]\ntype = 'log'\npath = 'app.log'\nencoding = 'klingon'\n"
            "[query.q]\ncontains = 'x'\n",
            path=str(tmp_path / "q.toml"),
        )
        with pytest.raises(QueryFailed, match="klingon"):
            ask(unknown)

    def test_bytes_that_are_no_text_do_no_harm(self, tmp_path):
        (tmp_path / "app.log").write_bytes(gzip.compress(LINES.encode()) + b"\nneedle\xff\n")
        result = ask(log_query(tmp_path, "contains = 'needle'"))
        assert result.rows[0][2].endswith("needle\ufffd")


class TestScan:
    def job(self, path, **changes):
        return {
            "path": str(path), "encoding": "utf-8", "pattern": "x", "plain": True,
            "ignore_case": False, "start": "", "end": "", "rows": 100, "bytes": 10_000,
            "line_bytes": 100, **changes,
        }  # fmt: skip

    def test_stops_at_its_size_and_says_so(self, tmp_path):
        path = tmp_path / "big.log"
        path.write_text("x" * 9 + "\n" + "\n".join(["x" * 9] * 200))
        reply = scan(self.job(path, bytes=500, rows=1000))
        assert len(reply["rows"]) == 50
        assert reply["truncated"]

    def test_a_very_long_line_is_cut_and_counted_as_one(self, tmp_path):
        path = tmp_path / "long.log"
        path.write_text("x" * 950 + "\nx\n")
        rows = scan(self.job(path))["rows"]
        assert [(row[0], len(row[2])) for row in rows] == [(1, 100), (2, 1)]

    def test_a_time_that_is_none_is_no_time(self, tmp_path):
        path = tmp_path / "odd.log"
        path.write_text("2026-13-41 10:00 x\n")
        assert scan(self.job(path))["rows"] == [[1, None, "2026-13-41 10:00 x"]]
        assert scan(self.job(path, start="2026-01-01T00:00:00Z"))["rows"] == []


class TestRecorded:
    def templates(self, folder, data):
        (folder / "r.json").write_text(data if isinstance(data, str) else json.dumps(data))
        return QueryTemplates.parse(
            "[source.r]\ntype = 'recorded'\npath = 'r.json'\n"
            "[query.q]\nsql = 'SELECT :a'\nparameters = {a = 'integer'}\n",
            path=str(folder / "q.toml"),
        )

    def test_gives_the_first_answer_to_these_values(self, tmp_path):
        answers = [
            {"arguments": {"a": 1}, "columns": ["x"], "rows": [["one"]]},
            {"columns": ["x"], "rows": [["other"]]},
        ]
        templates = self.templates(tmp_path, {"q": answers})
        assert ask(templates, {"a": 1}).rows == (("one",),)
        assert ask(templates, {"a": 2}).rows == (("other",),)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("{", "cannot be read"),
            ([], "no answer"),
            ({"q": {"arguments": {"a": 2}, "columns": [], "rows": []}}, "no answer"),
            ({"q": {"rows": []}}, "no columns"),
            ({"q": {"columns": ["x"], "rows": [[1, 2]]}}, "one cell per column"),
        ],
    )
    def test_names_what_is_wrong(self, tmp_path, data, message):
        with pytest.raises(QueryFailed, match=message):
            ask(self.templates(tmp_path, data), {"a": 1})

    def test_a_cancelled_one_has_no_answer(self, tmp_path):
        cancelled = threading.Event()
        cancelled.set()
        templates = self.templates(tmp_path, {"q": {"columns": [], "rows": []}})
        with pytest.raises(QueryTimeout):
            ask(templates, {"a": 1}, cancelled=cancelled, clock=time.monotonic)
