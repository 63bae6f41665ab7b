"""The report of a run: complete, from the log alone, and safe whatever the run's texts hold."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.workflows.data import DataStore
from agentrt.workflows.events import Event
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.plan import make_plan
from agentrt.workflows.report import build_report, to_html, to_markdown, write_report
from agentrt.workflows.report_notes import series_of

GUIDE = """# Orders are late
Overview.
## Parameters
- `region` (string, default "eu"): where
## Step 1 - Check queue depth
### Instructions
Look at the queue of {region}.
### Queries
- `queue_depth`
### Connections
- if `max(queue_depth.depth) > 5000`: Step 2
- otherwise: Step 3
## Step 2 - Drain the queue
### Instructions
Drain it.
### Connections
- Step 4
### Policy
- gate: approve
## Step 3 - Look at the network
### Instructions
Look at it.
### Connections
- if the network of {region} is slow: Step 4
## Step 4 - Conclude
### Instructions
Say so.
### Connections
- end
<!-- Reaches A Final Conclusion: The backlog explains the alert. -->
"""
NAMES = {"Step1", "Step2", "Step3", "Step4"}


@pytest.fixture(scope="module")
def plan():
    return make_plan(parse_guide(GUIDE, name="orders"))


@pytest.fixture
def store(tmp_path):
    with DataStore(tmp_path) as made:
        yield made


ROWS = [(f"2026-03-01T10:{i:02}:00Z", "orders", 400 * i) for i in range(20)]


def edge(plan, source, target):
    return next(e.name for e in plan.edges if (e.source, e.target) == (source, target))


class Log:
    """Makes the events of a run, one second apart."""

    def __init__(self, plan):
        self.plan, self.events = plan, []

    def add(self, kind, step=None, **data):
        index = len(self.events)
        moment = f"2026-03-01T12:00:{index:02}.000000Z"
        self.events.append(Event(index, moment, kind, step, json.loads(json.dumps(data))))

    def decide(self, source, target, state, by, evidence, attempt=1):
        name = edge(self.plan, source, target)
        self.add(
            "edge_decided",
            source,
            edge=name,
            state=state,
            by=by,
            evidence=evidence,
            attempt=attempt,
        )

    def finish(self, step, edges, attempt=1, status="succeeded", result=None, error=None, **more):
        self.add(
            "step_finished",
            step,
            attempt=attempt,
            status=status,
            result=result,
            edges={edge(self.plan, step, to): state for to, state in edges.items()},
            tokens=120,
            cached_tokens=60,
            error=error,
            **more,
        )


def query_event(handle, **changes):
    request = {
        "query": "queue_depth",
        "source": "telemetry",
        "source_type": "sqlite",
        "kind": "sql",
        "statement": "SELECT ts, queue, depth FROM queue_depth WHERE region = :region",
        "parameters": {"region": "eu"},
    }
    outcome = {"outcome": {"handle": handle.to_json()}} if handle else {}
    return {"attempt": 1, "digest": "d" * 64, "request": request, **outcome, **changes}


def whole_run(plan, store, evil=""):
    """A run with a retry, a failed query, a model, a gate, a command and skipped steps."""
    handle = store.put("queue_depth", ["ts", "queue", "depth"], ROWS)
    log = Log(plan)
    log.add(
        "run_started",
        guide="orders",
        fingerprint="f" * 64,
        parameters={"region": "eu" + evil},
        workers=3,
        budget={"tokens": 1000, "wall_seconds": None},
        seed=7,
    )
    log.add("step_started", "Step1", attempt=1, worker="w1")
    failed = {"type": "QueryTimeout", "message": "stopped after 10 s" + evil, "remedy": ""}
    log.add("query_run", "Step1", **query_event(None, failed=failed))
    log.finish("Step1", {}, status="failed", error="stopped after 10 s" + evil)
    log.add("step_retried", "Step1", attempt=1, wait=0.5, error="stopped after 10 s" + evil)
    log.add("step_started", "Step1", attempt=2, worker="w1")
    log.add("query_run", "Step1", **query_event(handle, attempt=2))
    request = {"asks": "text", "context": "Step1", "messages": "m" * 64, "model": "small" + evil}
    text = "The queue of orders grew to 7,600." + evil
    log.add(
        "model_called",
        "Step1",
        attempt=2,
        request=request,
        outcome={"text": text, "tokens": 120, "cached_tokens": 60},
    )
    log.decide("Step1", "Step2", "enabled", "code", "`max(queue_depth.depth) > 5000` is true")
    log.decide("Step1", "Step3", "disabled", "rule", "otherwise; taken: Step2")
    log.finish(
        "Step1",
        {"Step2": "enabled", "Step3": "disabled"},
        attempt=2,
        result={"findings": text, "handles": {}, "values": {}},
    )
    log.add("step_skipped", "Step3", reason="every incoming edge is disabled" + evil)
    log.add(
        "gate_opened",
        "Step2",
        gate="Step2/approve",
        question="May Step2 run?" + evil,
        options=["approve", "deny"],
        default="deny",
        expires=None,
    )
    log.add("gate_answered", "Step2", gate="Step2/approve", answer="approve", by="person")
    log.add("step_started", "Step2", attempt=1, worker="w2")
    command = {"command": "drain --all" + evil, "environment": {"TOKEN": "hidden-secret"}}
    outcome = {"exit_code": 0, "stdout": "drained 7600" + evil, "duration": 1.5}
    log.add("tool_called", "Step2", attempt=1, request=command, outcome=outcome)
    log.finish("Step2", {"Step4": "enabled"}, result={"findings": "Drained." + evil})
    log.add("step_started", "Step4", attempt=1, worker="w1")
    log.finish(
        "Step4",
        {"end": "enabled"},
        result={"findings": "", "conclusion": "The backlog explains the alert." + evil},
    )
    log.add("run_ended", status="succeeded", reason="end was reached")
    return log.events


class TestBuild:
    def test_says_how_the_run_went(self, plan, store):
        report = build_report(whole_run(plan, store), plan, run_id="run-1", data=store)
        assert (report.status, report.run_id, report.started[:10]) == (
            "succeeded", "run-1", "2026-03-01",
        )  # fmt: skip
        assert report.path == ("Step1", "Step2", "Step4")
        assert report.conclusion == "The backlog explains the alert."
        assert report.parameters == {"region": "eu"}
        assert report.seconds == 19
        assert report.settings["budget"] == "tokens 1000"
        assert report.decided_by == {"code": 1, "rule": 3}
        assert [step.id for step in report.not_run] == ["Step3"]
        assert report.states["Step3"] == "skipped"
        assert report.states[edge(plan, "Step1", "Step2")] == "enabled"

    def test_keeps_every_attempt_query_and_decision(self, plan, store):
        report = build_report(whole_run(plan, store), plan, data=store)
        first, second, third, last = report.steps
        assert [(a.number, a.start, a.end, a.status, a.wait) for a in first.attempts] == [
            (1, 1, 3, "failed", 0.5),
            (2, 5, 10, "succeeded", None),
        ]
        assert first.seconds == 7
        assert [query.failure[:12] for query in first.queries] == ["QueryTimeout", ""]
        assert [query.attempt for query in first.queries] == [1, 2]
        assert len(first.queries[1].rows) == 12
        assert {(note.edge.target, note.state, note.by) for note in first.decisions} == {
            ("Step2", "enabled", "code"),
            ("Step3", "disabled", "rule"),
        }
        assert first.by_model
        assert not second.by_model
        assert [(gate.answer, gate.by, gate.opened, gate.answered) for gate in second.gates] == [
            ("approve", "person", 12, 13)
        ]
        assert second.commands[0].exit_code == 0
        assert third.status == "skipped"
        assert third.reason == "every incoming edge is disabled"
        assert [note.state for note in third.incoming] == ["disabled"]
        assert [note.words for note in third.decisions] == ["the network of eu is slow"]
        assert last.conclusion == "The backlog explains the alert."

    def test_without_the_tables_it_shows_the_samples(self, plan, store):
        report = build_report(whole_run(plan, store), plan)
        assert report.queries[1].rows == (ROWS[0], ROWS[1], ROWS[-1])
        assert "the first 2 and the last of 20 rows" in to_markdown(report)

    def test_tables_that_are_gone_do_not_end_it(self, plan, store, tmp_path):
        events = whole_run(plan, store)
        with DataStore(tmp_path / "other") as other:
            report = build_report(events, plan, data=other)
        assert len(report.queries[1].rows) == 3

    def test_any_beginning_of_a_log_has_a_report(self, plan, store):
        events = whole_run(plan, store)
        for length in range(len(events) + 1):
            report = build_report(events[:length], plan, data=store)
            page = to_html(report)
            assert {part.removeprefix("step-") for part in parsed(page).ids} >= NAMES
            assert to_markdown(report).startswith("# Orders are late")
            assert report.events == length

    def test_the_same_log_gives_the_same_report(self, plan, store):
        events = whole_run(plan, store)
        pages = {to_html(build_report(events, plan, data=store)) for _ in range(3)}
        assert len(pages) == 1

    def test_an_open_gate_is_told(self, plan, store):
        events = [e for e in whole_run(plan, store) if e.index <= 12]
        report = build_report(events, plan, data=store)
        assert report.status == "running"
        assert "Step2/approve" in report.reason
        assert "open; its default is deny" in to_markdown(report)

    def test_edges_of_a_failed_step_say_so(self, plan):
        log = Log(plan)
        log.add("run_started", guide="orders", parameters={})
        log.add("step_started", "Step1", attempt=1)
        log.finish("Step1", {}, status="timed_out", error="timeout after 180 s", final=True)
        log.add("run_ended", status="failed", reason="Step1 timed out")
        report = build_report(log.events, plan)
        assert report.steps[0].status == "timed_out"
        assert report.steps[0].reason == "timeout after 180 s"
        assert {note.evidence for note in report.steps[0].decisions} == {"its step was timed out"}
        assert "Step1 timed out" in to_markdown(report)
        assert "Step1 timed out" in to_html(report)


class Page(HTMLParser):
    """Reads a page: its elements, ids, links, texts; fails on tags that do not match."""

    VOID = frozenset({"meta", "br"})

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.attributes = [], [], [], [], []
        self.text = ""

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += [(name, key, value) for key, value in attributes]
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if name not in self.VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in self.VOID:
            self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def parsed(page):
    reader = Page()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


class TestHtml:
    @pytest.fixture
    def page(self, plan, store):
        return to_html(build_report(whole_run(plan, store), plan, run_id="run-1", data=store))

    def test_is_well_formed_and_every_link_leads_somewhere(self, page):
        read = parsed(page)
        assert len(read.ids) == len(set(read.ids))
        assert read.links
        assert {link[1:] for link in read.links} <= set(read.ids)
        assert {f"#step-{name}" for name in NAMES} <= set(read.links)

    def test_asks_the_network_for_nothing_and_runs_nothing(self, page):
        read = parsed(page)
        policy = [
            value for name, key, value in read.attributes if (name, key) == ("meta", "content")
        ]
        assert "default-src 'none'; style-src 'unsafe-inline'" in policy
        assert not {"script", "link", "img", "iframe", "object", "form"} & set(read.tags)
        assert not [key for _, key, _ in read.attributes if key.startswith("on") or key == "src"]
        assert "@import" not in page
        assert "url(http" not in page

    def test_shows_the_evidence(self, page):
        text = parsed(page).text
        for piece in (
            "The backlog explains the alert.",
            "SELECT ts, queue, depth FROM queue_depth WHERE region = :region",
            "The first 12 of 20 rows",
            "written by a model",
            "max(queue_depth.depth) > 5000",
            "QueryTimeout: stopped after 10 s",
            "drain --all",
            "approve, by a person, after 1 s",
            "every incoming edge is disabled",
            "Attempt 1 failed after 2 s",
        ):
            assert piece in text
        assert "hidden-secret" not in page

    def test_the_picture_links_every_step_in_its_colour(self, page):
        start = page.index("<svg")
        picture = page[start : page.index("</svg>", start)]
        assert picture.count('<a href="#step-') == 4
        assert picture.count("skipped") >= 1
        assert "#d1fadf" in picture
        assert "xmlns" not in picture
        assert "ns0:" not in picture

    def test_a_measurement_over_time_is_drawn(self, plan, store):
        report = build_report(whole_run(plan, store), plan, data=store)
        assert report.queries[1].series == tuple(400.0 * i for i in range(20))
        text = parsed(to_html(report)).text
        assert "from 0 to 7600, between 0 and 7600" in text

    def test_a_step_that_was_not_approved_says_who_said_so(self, plan, store):
        events = [event for event in whole_run(plan, store) if event.index <= 13]
        events[-1].data.update(answer="deny", by="default")
        ended = {"status": "inconclusive", "reason": "no enabled edge leads to end"}
        events.append(Event(14, "2026-03-01T12:01:00Z", "run_ended", None, ended))
        report = build_report(events, plan, data=store)
        for text in (parsed(to_html(report)).text, to_markdown(report)):
            assert "deny, by default since nobody answered" in text
            assert "no enabled edge leads to end" in text
            assert "came to no conclusion" in text

    def test_a_summary_is_marked_as_a_models(self, plan, store):
        report = build_report(whole_run(plan, store), plan, summary="All <b>well</b>.")
        read = parsed(to_html(report))
        assert "All <b>well</b>." in read.text
        assert "summary" in read.ids
        assert "written by a model" in to_markdown(report)

    @settings(max_examples=25, deadline=None)
    @given(
        evil=st.text(max_size=20)
        | st.sampled_from(
            ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style>", "</pre>"]
        )
    )
    def test_foreign_text_adds_no_element(self, plan, tmp_path_factory, evil):
        with DataStore(tmp_path_factory.mktemp("data")) as store:
            plain = build_report(whole_run(plan, store), plan, data=store)
            report = build_report(whole_run(plan, store, evil), plan, data=store)
        read, wanted = parsed(to_html(report)), parsed(to_html(plain))
        assert sorted(read.tags) == sorted(wanted.tags)
        assert sorted(key for _, key, _ in read.attributes) == sorted(
            key for _, key, _ in wanted.attributes
        )

    def test_a_title_and_a_cell_are_only_text(self, store):
        guide = GUIDE.replace("Check queue depth", "Check <img src=x> & 'depth'")
        plan = make_plan(parse_guide(guide, name="orders"))
        handle = store.put("queue_depth", ["<b>"], [("<script>",)])
        log = Log(plan)
        log.add("run_started", guide="orders", parameters={"<i>": "<u>"})
        log.add("step_started", "Step1", attempt=1)
        log.add("query_run", "Step1", **query_event(handle))
        read = parsed(to_html(build_report(log.events, plan, data=store)))
        assert not {"img", "script", "u"} & set(read.tags)
        assert "Check <img src=x> & 'depth'" in read.text
        assert "<script>" in read.text
        assert f"#step-{plan.steps[0]}" in read.links


class TestMarkdown:
    def test_has_every_part(self, plan, store):
        text = to_markdown(build_report(whole_run(plan, store), plan, run_id="run-1", data=store))
        for piece in (
            "# Orders are late",
            "**succeeded**: The backlog explains the alert.",
            "## Findings",
            "Step1 → Step2 → Step4",
            "```mermaid",
            "```sql\nSELECT ts, queue, depth",
            "| ts | queue | depth |",
            "## Steps that did not run",
            "- Step3 Look at the network: skipped",
            "(the first 12 of 20 rows)",
        ):
            assert piece in text
        assert "hidden-secret" not in text

    @given(evil=st.text(alphabet="`*_<>[]()|#\n\r\\!~& ab", max_size=30))
    @settings(max_examples=50, deadline=None)
    def test_foreign_text_is_no_markup(self, plan, tmp_path_factory, evil):
        with DataStore(tmp_path_factory.mktemp("data")) as store:
            plain = to_markdown(build_report(whole_run(plan, store), plan, data=store))
            text = to_markdown(build_report(whole_run(plan, store, evil), plan, data=store))
        assert headings(text) == headings(plain)
        assert text.count("\n| ") == plain.count("\n| ")

    def test_a_fence_in_an_output_does_not_end_its_block(self, plan, store):
        evil = "\n```\n# Not a heading\n````\n"
        text = to_markdown(build_report(whole_run(plan, store, evil), plan, data=store))
        assert "`````text\ndrained 7600\n```\n# Not a heading\n````\n`````" in text


def headings(text):
    """The headings of a Markdown text, those within fenced blocks left out."""
    found, fence = [], ""
    for line in text.splitlines():
        mark = line[: len(line) - len(line.lstrip("`"))]
        if fence:
            fence = "" if line == fence else fence
        elif len(mark) >= 3:
            fence = mark
        elif line.startswith("#"):
            found.append(line)
    return found


class TestSeries:
    @pytest.mark.parametrize(
        ("columns", "rows"),
        [
            (["ts", "a"], [(ts, depth) for ts, _, depth in ROWS[:4]]),
            (["ts", "name"], [(ts, queue) for ts, queue, _ in ROWS]),
            (["ts", "a", "b"], [(ts, depth, depth) for ts, _, depth in ROWS]),
            (["ts", "a"], [(ts, depth) for ts, _, depth in ROWS + ROWS]),
            (["n", "a"], [(depth, depth) for _, _, depth in ROWS]),
        ],
    )
    def test_what_is_no_single_measurement_is_not_drawn(self, store, columns, rows):
        handle = store.put("q", columns, [row[: len(columns)] for row in rows])
        assert series_of(handle, store.rows(handle)) == ()

    def test_line_numbers_and_missing_values_are_no_measurements(self, store):
        rows = [(i, ts, None if i == 3 else depth) for i, (ts, _, depth) in enumerate(ROWS)]
        handle = store.put("q", ["line", "ts", "depth"], rows)
        assert len(series_of(handle, store.rows(handle))) == 19


class TestWrite:
    def test_writes_both_forms(self, plan, store, tmp_path):
        report = build_report(whole_run(plan, store), plan)
        assert write_report(report, tmp_path / "r.html").read_text() == to_html(report)
        assert write_report(report, str(tmp_path / "r.md")).read_text() == to_markdown(report)
        names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("data"))
        assert names == ["r.html", "r.md"]

    @pytest.mark.parametrize("name", ["r.pdf", "r", "nowhere/r.html"])
    def test_says_what_it_cannot(self, plan, store, tmp_path, name):
        with pytest.raises(ConfigError):
            write_report(build_report([], plan), tmp_path / name)
