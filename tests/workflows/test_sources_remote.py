"""Remote sources: Prometheus against a loopback server, PostgreSQL on a fake driver."""

from __future__ import annotations

import contextlib
import json
import socketserver
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from agentrt.workflows.queries import QueryFailed, QueryTemplates, QueryTimeout
from agentrt.workflows.queries_model import Control
from agentrt.workflows.sources_postgres import ask_postgres
from agentrt.workflows.sources_prometheus import ask_prometheus

LIMIT = 20.0


class Server:
    """Answers every request with ``reply(handler)``; keeps what was asked."""

    def __init__(self, reply):
        self.asked, self.over = [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                query = {key: value[0] for key, value in parse_qs(url.query).items()}
                outer.asked.append((url.path, query, dict(self.headers)))
                with contextlib.suppress(ConnectionError):
                    reply(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(10)


def says(body, status=200, headers=()):
    """A reply with this body: JSON, or bytes as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    def reply(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    return reply


def answers(kind, result):
    return says({"status": "success", "data": {"resultType": kind, "result": result}})


def templates(url, settings="", source=""):
    window = ", from = 'timestamp'" if "{from}" in settings else ""
    return QueryTemplates.parse(
        f"[source.m]\ntype = 'prometheus'\nurl = '{url}'\n{source}\n"
        f"[query.q]\npromql = 'up{{job=\"{{job}}\"}}'\n{settings}\n"
        f"parameters = {{job = 'string'{window}}}\n"
    )


def ask(made, arguments=None, **how):
    return made.run(made.bind("q", {"job": "a", **(arguments or {})}), **how)


VECTOR = [
    {"metric": {"__name__": "up", "job": "a"}, "value": [1772359200.5, "1"]},
    {"metric": {"job": "b", "value": "odd"}, "value": [1772359200, "NaN"]},
]


class TestPrometheus:
    def test_an_instant_query(self):
        with Server(answers("vector", VECTOR)) as server:
            result = ask(templates(server.url), {"job": 'a"} or up{x="'})
        path, query, _ = server.asked[0]
        assert path == "/api/v1/query"
        assert query == {"query": 'up{job="a\\"} or up{x=\\""}'}
        assert result.columns == ("ts", "value", "metric", "job", "label_value")
        assert result.rows[0] == ("2026-03-01T10:00:00.500000Z", 1.0, "up", "a", None)
        assert result.rows[1][2:] == (None, "b", "odd")

    def test_a_range_query(self):
        series = [{"metric": {"job": "a"}, "values": [[0, "1"], [30, "+Inf"], [60, "2.5"]]}]
        settings = "start = '{from}'\nend = '2026-03-02'\nstep = '1m'\nrow_limit = 2"
        with Server(answers("matrix", series)) as server:
            result = ask(templates(server.url, settings), {"from": "2026-03-01"})
        path, query, _ = server.asked[0]
        assert path == "/api/v1/query_range"
        assert (query["start"], query["step"]) == ("2026-03-01T00:00:00Z", "1m")
        assert query["end"] == "2026-03-02T00:00:00Z"
        assert [row[1] for row in result.rows] == [1.0, float("inf")]
        assert result.truncated

    def test_a_scalar(self):
        with Server(answers("scalar", [0, "3"])) as server:
            assert ask(templates(server.url)).rows == (("1970-01-01T00:00:00Z", 3.0),)

    def test_a_token_is_sent_and_not_described(self):
        made = templates("http://127.0.0.1:9", source="token_env = 'METRICS_TOKEN'")
        bound = made.bind("q", {"job": "a"})
        assert "METRICS" not in json.dumps(bound.describe())
        with pytest.raises(QueryFailed, match="METRICS_TOKEN is not set"):
            ask_prometheus(bound, Control(LIMIT, lambda: 0.0), environment={})
        with Server(answers("vector", [])) as server:
            bound = templates(server.url, source="token_env = 'T'").bind("q", {"job": "a"})
            ask_prometheus(bound, Control(LIMIT, lambda: 0.0), environment={"T": "secret"})
        assert server.asked[0][2]["Authorization"] == "Bearer secret"

    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (
                says({"status": "error", "errorType": "bad_data", "error": "1:3: oh"}, 400),
                "1:3: oh",
            ),
            (says(b"busy", 503), "HTTP 503"),
            (says({}, 302, [("Location", "http://127.0.0.1:1/")]), "HTTP 302"),
            (says(b"<html>"), "not Prometheus' JSON"),
            (says(b"[" * 100_000), "not Prometheus' JSON"),
            (says([1]), "not Prometheus' JSON"),
            (answers("tensor", []), "another shape"),
            (answers("vector", [{"metric": {}}]), "another shape"),
            (answers("vector", [[]]), "another shape"),
            (answers("matrix", 7), "another shape"),
            (answers("scalar", ["soon", "3"]), "another shape"),
            (lambda handler: handler.connection.close(), "does not answer"),
        ],
    )
    def test_nonsense_is_named(self, reply, message):
        with Server(reply) as server, pytest.raises(QueryFailed, match=message) as caught:
            ask(templates(server.url))
        assert not isinstance(caught.value, QueryTimeout)
        assert caught.value.remedy

    def test_no_server_is_named(self):
        with socketserver.TCPServer(("127.0.0.1", 0), None) as free:
            port = free.server_address[1]
        with pytest.raises(QueryFailed, match="does not answer"):
            ask(templates(f"http://127.0.0.1:{port}"))

    def test_other_schemes_are_refused(self):
        with pytest.raises(QueryFailed, match="no HTTP address"):
            ask(templates("file:///etc/passwd"))

    def test_a_password_in_the_address_is_refused_and_not_repeated(self):
        with pytest.raises(QueryFailed, match="token_env") as caught:
            ask(templates("http://user:hunter2@127.0.0.1:9"))
        assert "hunter2" not in str(caught.value)

    def test_a_huge_answer_is_given_up(self):
        def reply(handler):
            handler.send_response(200)
            handler.end_headers()
            for _ in range(1000):
                handler.wfile.write(b" " * 2**20)

        with Server(reply) as server, pytest.raises(QueryFailed, match="more than 32 MiB"):
            ask(templates(server.url, f"time_limit = {LIMIT}"))

    def test_silence_ends_at_the_limit(self):
        with Server(lambda handler: server.over.wait(LIMIT)) as server:
            with pytest.raises(QueryTimeout, match=r"stopped after 0\.2 s"):
                ask(templates(server.url, "time_limit = 0.2"))
            server.over.set()

    def test_a_trickle_ends_at_the_limit(self):
        def reply(handler):
            handler.send_response(200)
            handler.end_headers()
            while not server.over.wait(0.02):
                handler.wfile.write(b" ")
                handler.wfile.flush()

        with Server(reply) as server:
            with pytest.raises(QueryTimeout):
                ask(templates(server.url, "time_limit = 0.3"))
            server.over.set()

    def test_cancelling_ends_it(self):
        cancelled = threading.Event()

        def reply(handler):
            cancelled.set()
            server.over.wait(LIMIT)

        with Server(reply) as server:
            with pytest.raises(QueryTimeout, match="cancelled"):
                ask(templates(server.url, "time_limit = 60"), cancelled=cancelled)
            server.over.set()


class QueryCanceled(Exception):
    """What the server raises for a statement that ran into its timeout."""


class Driver:
    """The part of psycopg that is used: DB-API with named cursors and ``cancel``."""

    Error = Exception

    def __init__(self, rows=(), error=None, hang=False):
        self.rows, self.error, self.hang = list(rows), error, hang
        self.executed, self.address, self.fetched = [], "", 0
        self.cancelled, self.closed, self.rolled_back = threading.Event(), False, False

    def connect(self, address, *, connect_timeout, autocommit):
        self.address = address
        assert connect_timeout >= 1
        assert autocommit is False
        return self

    def cursor(self, name=None):
        return _Cursor(self, name)

    def cancel(self):
        self.cancelled.set()

    def rollback(self):
        self.rolled_back = True

    def close(self):
        self.closed = True


class _Cursor:
    description = (("a", 23), ("a", 25))

    def __init__(self, driver, name):
        self.driver, self.name = driver, name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def execute(self, statement, values=None):
        self.driver.executed.append((self.name, statement, values))
        if self.name is None:
            return
        if self.driver.hang:
            self.driver.cancelled.wait(LIMIT)
            raise QueryCanceled("canceling statement due to user request")
        if self.driver.error:
            raise self.driver.error

    def fetchmany(self, size):
        found = self.driver.rows[self.driver.fetched : self.driver.fetched + size]
        self.driver.fetched += len(found)
        return found


def postgres(settings="dsn = 'host=db'", query=""):
    made = QueryTemplates.parse(
        f"[source.p]\ntype = 'postgres'\n{settings}\n"
        "[query.q]\nsql = \"SELECT a, b FROM t WHERE b LIKE '%' AND c::text = :c\"\n"
        f"{query}\nparameters = {{c = 'string'}}\n"
    )
    return made.bind("q", {"c": "'; DROP TABLE t; --"})


def still():
    return Control(LIMIT, lambda: 0.0)


class TestPostgres:
    def test_reads_in_a_read_only_transaction_with_bound_values(self):
        driver = Driver(rows=[(1, "x"), (2, "y")])
        result = ask_postgres(postgres(), still(), driver=driver)
        assert result.columns == ("a", "a_2")
        assert result.rows == ((1, "x"), (2, "y"))
        assert driver.executed == [
            (None, "SET TRANSACTION READ ONLY", None),
            (None, "SET LOCAL statement_timeout = 20000", None),
            (
                "agentrt",
                "SELECT a, b FROM t WHERE b LIKE '%%' AND c::text = %(c)s",
                {"c": "'; DROP TABLE t; --"},
            ),
        ]
        assert driver.rolled_back
        assert driver.closed

    def test_fetches_no_more_than_it_keeps(self):
        driver = Driver(rows=[(i, "x") for i in range(5000)])
        result = ask_postgres(postgres(query="row_limit = 700"), still(), driver=driver)
        assert (len(result.rows), result.truncated) == (700, True)
        assert driver.fetched == 1000

    def test_an_error_is_named_and_the_connection_closed(self):
        driver = Driver(error=RuntimeError('relation "t" does not exist'))
        with pytest.raises(QueryFailed, match='relation "t"'):
            ask_postgres(postgres(), still(), driver=driver)
        assert driver.closed

    def test_the_servers_own_timeout_is_one(self):
        driver = Driver(error=QueryCanceled("statement timeout"))
        with pytest.raises(QueryTimeout):
            ask_postgres(postgres(), still(), driver=driver)

    def test_a_hung_statement_is_cancelled(self):
        driver, cancelled = Driver(hang=True), threading.Event()
        cancelled.set()
        with pytest.raises(QueryTimeout):
            ask_postgres(postgres(), Control(LIMIT, lambda: 0.0, cancelled), driver=driver)
        assert driver.cancelled.is_set()
        assert driver.closed

    def test_the_address_can_come_from_the_environment(self):
        bound, driver = postgres("dsn_env = 'DSN'"), Driver()
        ask_postgres(bound, still(), driver=driver, environment={"DSN": "host=x password=y"})
        assert driver.address == "host=x password=y"
        assert "password" not in json.dumps(bound.describe())
        with pytest.raises(QueryFailed, match="DSN is not set"):
            ask_postgres(bound, still(), driver=driver, environment={})

    def test_without_the_driver_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(QueryFailed, match=r"pip install 'psycopg\[binary\]'"):
            ask_postgres(postgres(), still())

    def test_the_installed_driver_is_used(self, monkeypatch):
        driver = Driver(rows=[(1, 2)])
        module = types.SimpleNamespace(connect=driver.connect, Error=driver.Error)
        monkeypatch.setitem(sys.modules, "psycopg", module)
        assert ask_postgres(postgres(), still()).rows == ((1, 2),)
