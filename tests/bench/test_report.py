"""The report as a document: whole, self-contained, escaped, and small enough to send around."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from agentrt.bench.metrics import measure
from agentrt.bench.records import PinRecord, ProgramRecord
from agentrt.bench.report import render_page, write_report, write_run_report
from agentrt.bench.report_figures import best_policy, comparison_sentence, figures_table
from agentrt.bench.report_page import comparison_page, run_page
from agentrt.bench.report_timeline import timeline_data
from agentrt.errors import ConfigError
from tests.bench.report_samples import (
    NASTY,
    comparison_of,
    empty_run,
    sample_run,
    tool,
    turn,
)

VOID = {"meta", "input", "br", "img", "link", "hr"}
RESOURCES = {"src", "href", "data", "action", "poster", "srcset", "xlink:href", "formaction"}


class Document(HTMLParser):
    """Reads a page: balanced tags, ids, resource references, JSON scripts and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.data: dict[str, object] = {}
        self.text: list[str] = []
        self.tags: list[str] = []
        self._script = ""
        self.feed(text)
        self.close()
        assert self.stack == [], "unclosed elements"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        assert not [name for name in values if name.startswith("on")], "an inline handler"
        if "id" in values:
            self.ids.append(values["id"])
        self.references += [values[name] or "" for name in values if name in RESOURCES]
        self._script = values.get("id", "") if tag == "script" else ""
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            if self._script:
                self.data[self._script] = json.loads(data)
        elif self.stack and self.stack[-1] != "style":
            self.text.append(data)


def comparison_text(*policies: str, **changes) -> str:
    runs = [sample_run(name, slow=60.0 / 4**place) for place, name in enumerate(policies)]
    return render_page(comparison_page(comparison_of(runs, **changes)))


@pytest.fixture(scope="module")
def page() -> Document:
    return Document(comparison_text("fcfs", "program-fcfs", "fixed-ttl=30"))


class TestComparison:
    def test_has_every_part(self, page):
        assert {"plots", "timeline", "figures", "programs", "settings"} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        headings = "".join(page.text)
        for name in ("Job completion time", "Where the time goes", "Prefilled tokens"):
            assert name in headings

    def test_references_nothing_outside_itself(self, page):
        assert [link for link in page.references if not link.startswith("#")] == []
        assert all(link[1:] in page.ids for link in page.references)
        source = comparison_text("fcfs", "other")
        assert re.findall(r"https?://|//[a-z]+\.[a-z]|@import|url\(", source) == []

    def test_carries_the_data_of_every_run(self, page):
        index = page.data["index"]
        policies = [entry["policy"] for entry in index["runs"]]
        assert sorted(policies) == ["fcfs", "fixed-ttl=30", "program-fcfs"]
        assert index["runs"][index["selected"]]["policy"] == "fixed-ttl=30"
        for entry in index["runs"]:
            assert page.data[entry["id"]]["turns"]["count"] == 12

    def test_plots_and_picture_do_not_need_a_script(self, page):
        assert page.tags.count("svg") >= 7
        assert "noscript" in page.tags

    def test_same_input_gives_the_same_page(self):
        assert comparison_text("fcfs", "b") == comparison_text("fcfs", "b")

    def test_one_policy(self):
        document = Document(comparison_text("fcfs"))
        assert "Under fcfs a program takes" in "".join(document.text)

    def test_nothing_measured_yet(self):
        empty = comparison_of([], policies=["fcfs", "b"])
        text = "".join(Document(render_page(comparison_page(empty))).text)
        assert "No program has finished yet." in text
        assert "Interrupted before fcfs, b had run" in text

    def test_runs_without_a_single_program(self):
        Document(render_page(comparison_page(comparison_of([empty_run("a"), empty_run("b")]))))

    def test_an_interrupted_comparison_says_so(self):
        assert "interrupted" in comparison_text("fcfs", "b", complete=False)
        assert "interrupted" not in comparison_text("fcfs", "b")

    def test_failed_programs_are_counted_aloud(self):
        run = sample_run("fcfs")
        run.programs[0] = dataclasses.replace(run.programs[0], outcome="failed", detail="gone")
        text = render_page(comparison_page(comparison_of([run, sample_run("b")])))
        assert "1 programs failed or were cancelled" in text


class TestFigures:
    def test_the_best_cell_of_a_row_is_marked(self):
        table = figures_table(["a", "b"], {"a": {"jct_mean": 10.0}, "b": {"jct_mean": 7.5}})
        assert re.search(r'num">10 s</td><td class="num best"><b title="best">7.50 s', table)

    def test_higher_is_better_for_throughput(self):
        table = figures_table(
            ["a", "b"], {"a": {"programs_per_hour": 9}, "b": {"programs_per_hour": 8}}
        )
        assert re.search(r'best"><b title="best">9<', table)

    def test_equal_or_missing_values_mark_nothing(self):
        assert 'class="num best"' not in figures_table(["a", "b"], {"a": {"jct_p50": 1.0}})
        alike = {"a": {"makespan": 3.0}, "b": {"makespan": 3.0}}
        assert 'class="num best"' not in figures_table(["a", "b"], alike)

    def test_the_sentence_compares_with_fcfs(self):
        metrics = {
            "fcfs": {"jct_mean": 600.0, "prefilled_tokens": 9_000},
            "x": {"jct_mean": 200.0, "prefilled_tokens": 1_000},
            "slowest": {"jct_mean": 900.0},
        }
        assert best_policy(list(metrics), metrics) == "x"
        assert comparison_sentence(list(metrics), metrics) == (
            "x finishes a program in 200 s on average, 3.0× faster than fcfs (600 s), "
            "and prefills 9.0× fewer tokens."
        )

    def test_the_sentence_does_not_flatter(self):
        metrics = {"fcfs": {"jct_mean": 5.0}, "x": {"jct_mean": 6.0}}
        assert comparison_sentence(["fcfs", "x"], metrics).startswith("fcfs is the fastest")


class TestRun:
    def run(self):
        run = sample_run("fixed-ttl=30", programs=2)
        run.programs = [
            ProgramRecord("program-0", "t", 0.0, 60.0, "resolved", "6 passed"),
            ProgramRecord("program-1", "t", 1.0, 70.0, "unresolved", "1 failed: " + NASTY),
        ]
        run.tools.append(
            tool("program-0", command="echo " + NASTY, exit_code=3, peak_memory=5 * 2**20)
        )
        run.settings = {"sandbox": "process", "command": "agentrt demo", "model": "tiny"}
        return run

    def test_shows_verdicts_and_commands(self):
        page = run_page(self.run(), title="agentrt demo", headline="1 of 2 resolved")
        text = "".join(Document(render_page(page)).text)
        for part in ("1/2", "6 passed", "unresolved", "echo </script>", "exit 3", "5 MiB"):
            assert part in text
        assert "1 of 2 resolved" in text

    def test_the_judges_test_run_is_not_a_call_of_the_agent(self):
        run = self.run()
        before = sum(row.program == "program-0" for row in run.tools)
        run.tools.append(tool("program-0", name="verdict", command="make test", exit_code=0))
        text = "".join(Document(render_page(run_page(run, title="t", headline="h"))).text)
        assert f"{before} tool calls" in text
        assert "make test" in text

    def test_cancelled_and_unfinished_turns(self):
        run = empty_run()
        run.turns += [
            turn(admitted=None, first_token=None, reason="cancelled"),
            turn("p1", first_token=None, reason="failed"),
        ]
        run.complete = False
        text = "".join(Document(render_page(run_page(run, title="cut", headline="cut short"))).text)
        assert "This run was interrupted" in text

    def test_an_empty_run(self, tmp_path):
        path = tmp_path / "report.html"
        write_run_report(empty_run(), path, title="nothing", headline="no program ran")
        assert "no program ran" in "".join(Document(path.read_text()).text)


class TestEscaping:
    def test_foreign_text_stays_text_everywhere(self):
        run = empty_run(policy=NASTY)
        run.programs.append(ProgramRecord(NASTY, NASTY, 0.0, 9.0, "resolved", NASTY))
        run.turns.append(turn(NASTY, text=NASTY, context=NASTY))
        run.tools.append(tool(NASTY, name=NASTY, status=NASTY, command=NASTY))
        run.pins.append(PinRecord(NASTY, NASTY, 1.0, 2.0, 3.0, 4, "final"))
        run.settings = {NASTY: NASTY, "command": NASTY, "sandbox": NASTY}
        for page in (
            run_page(run, title=NASTY, headline=NASTY),
            comparison_page(comparison_of([run, sample_run("b")], command=NASTY)),
        ):
            document = Document(render_page(page).encode("utf-8").decode("utf-8"))
            assert "img" not in document.tags
            assert document.tags.count("script") == 3 + len(page.runs)


class TestSize:
    def test_a_full_benchmark_fits(self):
        policies = ("fcfs", "program-fcfs", "fixed-ttl=30", "continuum")
        runs = [sample_run(name, programs=111, turns=51, slow=60.0) for name in policies]
        text = render_page(comparison_page(comparison_of(runs)))
        assert len(text.encode()) < 3_000_000

    def test_more_seeds_than_fit_are_left_out_aloud(self):
        runs = [sample_run(name, seed=seed) for seed in (1, 2, 3) for name in ("fcfs", "b")]
        page = comparison_page(comparison_of(runs))
        _, all_kept = timeline_data(page)
        assert len(all_kept) == 6
        size = len(timeline_data(page, budget=0)[0])
        _, kept = timeline_data(page, budget=2 * size)
        assert {run.policy for run in kept} == {"fcfs", "b"}
        assert {run.seed for run in kept} == {1}
        assert len(timeline_data(page, budget=0)[1]) == 1


class TestWriting:
    def test_replaces_the_file_and_leaves_no_draft(self, tmp_path):
        path = tmp_path / "report.html"
        path.write_text("old")
        write_report(comparison_of([sample_run("a"), sample_run("b")]), path)
        assert path.read_text().startswith("<!doctype html>")
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]

    def test_a_missing_directory_names_the_remedy(self, tmp_path):
        target = tmp_path / "absent" / "report.html"
        with pytest.raises(ConfigError, match="Name an existing directory"):
            write_report(comparison_of([sample_run("a")]), target)

    def test_figures_come_from_the_run(self):
        run = sample_run("a")
        assert run_page(run, title="t", headline="h").metrics["a"] == measure(run)
