"""`agentrt guide` in process: each command on shipped guides, exit codes, outputs."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest

from agentrt.cli.main import main
from agentrt.workflows.guides import shipped_guides

NO_EVENTS = "no model and no terminal"


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run a command line in a folder of its own; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = 0
        try:
            main(["guide", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def parsed(call, *arguments):
    code, out, _ = call(*arguments, "--json")
    return code, json.loads(out)


@pytest.mark.parametrize("name", shipped_guides())
def test_every_shipped_guide_is_linted_planned_and_drawn(call, name):
    assert call("lint", name)[0] == 0
    code, plan = parsed(call, "plan", name)
    assert code == 0
    assert plan["guide"] == name
    assert set(plan["critical_path"]) <= {step["id"] for step in plan["steps"]}
    starts = {"mermaid": "flowchart", "dot": "digraph", "svg": "<svg", "ascii": ""}
    for form, start in starts.items():
        code, out, _ = call("graph", name, "--format", form)
        assert code == 0
        assert start in out
        assert "Step1" in out


def test_the_plan_for_people_names_what_decides_each_edge(call):
    code, out, _ = call("plan", "queue_backlog")
    assert code == 0
    for words in ("Step2 (code)", "model or", "the longest way has 6 steps", "fingerprint"):
        assert words in out


def test_a_graph_goes_to_a_file(call, tmp_path):
    assert call("graph", "disk_full", "--format", "svg", "-o", "plan.svg")[0] == 0
    ElementTree.fromstring((tmp_path / "plan.svg").read_text())
    code, _, err = call("graph", "disk_full", "-o", "nowhere/plan.svg")
    assert code == 2
    assert "cannot be written" in err


def broken(tmp_path):
    """A guide whose condition names a parameter that is not declared."""
    folder = tmp_path / "mine"
    shutil.copytree(shipped_guides()["disk_full"].parent, folder)
    guide = folder / "guide.md"
    text = guide.read_text().replace("at least one host", "at least {number} hosts")
    guide.write_text(text.replace("disk was more than", "disk of {owner} was more than"))
    return guide


def test_lint_names_line_class_and_suggestion(call, tmp_path):
    guide = broken(tmp_path)
    code, out, _ = call("lint", str(guide))
    assert code == 1
    assert "owner" in out
    assert "guide.md:" in out
    code, _, _ = call("lint", str(guide), "--format", "json")
    assert code == 1


def test_lint_reads_what_the_parser_refuses_and_names_the_queries_file(call, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(shipped_guides()["queue_backlog"].parent, folder)
    guide, queries = folder / "guide.md", folder / "queries.toml"
    guide.write_text(guide.read_text().replace("## Step 3 - ", "## Step 13 - "))
    queries.write_text(queries.read_text().replace(":start_time", "'2026-01-01'"))
    code, out, _ = call("lint", str(folder))
    assert code == 1
    assert f"{guide}:" in out
    assert "CF/missing-step" in out
    assert any("queries.toml:" in line and "hard-coded-date" in line for line in out.splitlines())
    found = json.loads(call("lint", str(folder), "--format", "json")[1])["findings"]
    assert {each["path"] for each in found} == {"", "queries.toml"}


def test_lint_as_json_and_sarif(call, tmp_path):
    guide = broken(tmp_path)
    findings = json.loads(call("lint", str(guide), "--format", "json")[1])["findings"]
    assert {finding["category"] for finding in findings} <= {"CP", "CF", "DF", "DI", "PS"}
    assert all(finding["line"] > 0 and finding["message"] for finding in findings)
    sarif = json.loads(call("lint", str(guide), "--format", "sarif")[1])
    assert sarif["version"] == "2.1.0"
    assert len(sarif["runs"][0]["results"]) == len(findings)


def test_a_run_writes_log_data_and_reports(call, tmp_path):
    code, done = parsed(call, "run", "queue_backlog", "--incident", "stopped_consumers")
    assert code == 0
    assert done["status"] == "succeeded"
    assert done["path"] == ["Step1", "Step2", "Step4"]
    assert "consumers have stopped" in done["conclusion"]
    directory = tmp_path / "agentrt-guides"
    assert (directory / "log.db").is_file()
    assert (directory / "data" / "data.db").is_file()
    report = (directory / done["run"] / "report.html").read_text()
    assert "consumers have stopped" in report
    assert "consumers have stopped" in (directory / done["run"] / "report.md").read_text()


def test_a_run_shows_each_step_and_who_decided(call):
    code, out, _ = call("run", "queue_backlog", "--incident", "stopped_consumers")
    assert code == 0
    assert NO_EVENTS in out
    assert "Step1    started: Measure the backlog" in out
    assert "-> Step2, by code: `max(queue_depth.depth) > 5000` is true" in out
    assert "succeeded: The consumers have stopped" in out


def test_parameters_on_the_command_line_do_instead_of_an_incident(call):
    code, done = parsed(
        call,
        *("run", "certificate_expiry", "--param", "endpoint=shop.example.net"),
        *("--param", "at=2026-03-10T08:00:00Z"),
    )
    assert code == 0
    assert done["path"] == ["Step1", "Step5"]


def test_without_model_and_terminal_a_prose_edge_takes_its_default(call):
    code, done = parsed(call, "run", "queue_backlog", "--incident", "announced_sale")
    assert code == 0
    assert done["path"][-1] == "Step9"
    with_model = ("run", "queue_backlog", "--incident", "announced_sale", "--model", "scripted")
    code, done = parsed(call, *with_model)
    assert code == 0
    assert done["path"][-1] == "Step8"


def test_an_inconclusive_run_exits_with_3(call):
    code, done = parsed(
        call, "run", "database_failover", "--incident", "denied", "--model", "scripted"
    )
    assert (code, done["status"]) == (3, "inconclusive")


def test_a_failed_run_exits_with_1(call):
    code, done = parsed(
        call, "run", "database_failover", "--incident", "approved", "--model", "scripted",
        "--sandbox", "none",
    )  # fmt: skip
    assert (code, done["status"]) == (1, "failed")


@pytest.mark.parametrize("workers", ["1", "5"])
def test_compat_and_workers_take_the_same_path(call, workers):
    arguments = ("run", "disk_full", "--incident", "logs", "--workers", workers)
    assert parsed(call, *arguments)[1]["path"] == ["Step1", "Step2", "Step3", "Step4"]


def test_stepflys_semantics_can_be_asked_for(call):
    code, done = parsed(call, "run", "certificate_expiry", "--incident", "false_alarm", "--compat")
    assert code == 0
    assert done["path"] == ["Step1", "Step5"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("lint", "nothing"), "no guide 'nothing'"),
        (("lint", "disk_full", "--format", "xml"), "text, json, sarif"),
        (("lint", "disk_full", "--model", "abacus"), "no model 'abacus'"),
        (("graph", "disk_full", "--format", "png"), "mermaid, dot, svg, ascii"),
        (("run", "disk_full"), "pool is missing"),
        (("run", "disk_full", "--param", "pool"), "no value"),
        (("run", "disk_full", "--incident", "nothing"), "Beside the guide are: core_dumps"),
        (("run", "disk_full", "--incident", "logs", "--model", "gpt"), "no model 'gpt'"),
        (("run", "disk_full", "--param", "pool=web", "--model", "scripted"), "incident file"),
        (("run", "disk_full", "--incident", "logs", "--param", "x=1"), "x is unknown"),
        (("resume", "nothing"), "no run in"),
        (("replay", "nothing"), "no run in"),
        (("fork", "nothing", "--from", "Step1"), "no run in"),
        (("fork", "nothing", "--from", "Step1", "--result", "[1]"), "cannot be read"),
        (("answer", "nothing", "g", "approve"), "no run 'nothing'"),
        (("test",), "--all"),
        (("test", "disk_full", "--all"), "--all"),
    ],
)
def test_user_errors_exit_with_2_and_say_what_to_do(call, arguments, complaint):
    code, _, err = call(*arguments)
    assert code == 2
    assert complaint in err


@pytest.mark.parametrize(
    "command",
    ["lint", "plan", "graph", "run", "resume", "replay", "fork", "runs", "answer", "test"],
)
def test_every_command_has_help_with_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Example: agentrt guide" in " ".join(out.split())


def test_replay_makes_no_live_call_and_notices_a_changed_guide(call, tmp_path):
    _, done = parsed(call, "run", "latency_spike", "--incident", "cold_cache")
    # Without its telemetry nothing could be asked again.
    shutil.rmtree(tmp_path / "agentrt-guides" / "recordings" / "latency_spike")
    code, replayed = parsed(call, "replay", done["run"])
    assert code == 0
    assert replayed["same"]
    assert replayed["attempts"] == len(done["path"])
    assert replayed["calls"] == 6


def test_replay_of_a_run_with_a_model(call):
    arguments = ("run", "queue_backlog", "--incident", "announced_sale", "--model", "scripted")
    _, done = parsed(call, *arguments)
    code, out, _ = call("replay", done["run"])
    assert code == 0
    assert "none live" in out


def test_a_replay_that_comes_to_something_else_exits_with_1(call, tmp_path):
    folder = tmp_path / "disk_full"
    shutil.copytree(shipped_guides()["disk_full"].parent, folder)
    from agentrt.workflows.guides.telemetry import write_telemetry

    write_telemetry(folder / "recording", "disk_full")
    _, done = parsed(call, "run", str(folder), "--incident", "logs", "--recorded")
    assert done["status"] == "succeeded"
    guide = folder / "guide.md"
    guide.write_text(guide.read_text().replace("log_gib) > 60", "log_gib) > 600"))
    code, _, err = call("replay", done["run"])
    assert code == 1
    assert "diverges" in err


def test_a_fork_takes_another_way_and_is_listed(call):
    _, first = parsed(call, "run", "queue_backlog", "--incident", "stopped_consumers")
    code, forked = parsed(call, "fork", first["run"], "--from", "Step2", "--take", "Step3")
    assert code == 0
    assert forked["path"] == ["Step1", "Step2", "Step3", "Step6", "Step11"]
    assert forked["run"] != first["run"]
    known = {each["run"]: each for each in parsed(call, "runs")[1]["runs"]}
    assert known[forked["run"]]["parent"] == first["run"]
    assert known[first["run"]]["status"] == "succeeded"
    code, out, _ = call("runs")
    assert code == 0
    assert first["run"] in out.replace("\n", "")


def test_a_fork_changes_a_result(call, tmp_path):
    _, first = parsed(call, "run", "queue_backlog", "--incident", "announced_sale")
    change = tmp_path / "change.json"
    change.write_text('{"findings": "The sale was announced."}')
    arguments = ("fork", first["run"], "--from", "Step7", "--take", "Step8")
    code, forked = parsed(call, *arguments, "--result", str(change))
    assert code == 0
    assert forked["path"][-1] == "Step8"
    report = tmp_path / "agentrt-guides" / forked["run"] / "report.md"
    assert "The sale was announced." in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--from", "Step99"), "no step 'Step99'"),
        (("--from", "Step2", "--take", "Step9"), "no edge to Step9"),
        (("--from", "Step3"), "Step3"),
    ],
)
def test_a_fork_from_nowhere_is_refused(call, arguments, complaint):
    _, first = parsed(call, "run", "queue_backlog", "--incident", "stopped_consumers")
    code, _, err = call("fork", first["run"], *arguments)
    assert code == 2
    assert complaint in err


def test_runs_of_nested_guides_are_listed_on_request(call):
    _, done = parsed(call, "run", "checkout_outage", "--incident", "stock_service")
    assert [each["run"] for each in parsed(call, "runs")[1]["runs"]] == [done["run"]]
    every = {each["run"] for each in parsed(call, "runs", "--all")[1]["runs"]}
    assert every == {done["run"], f"{done['run']}.Step2.4"}


def test_test_reports_for_people_scripts_and_ci(call, tmp_path):
    code, out, _ = call("test", "disk_full", "--junit", "guides.xml")
    assert code == 0
    assert "ok     disk_full DF-1: succeeded, steps 1 2 3 4" in out
    assert "5 passed, 0 failed" in out
    assert len(list(ElementTree.parse(tmp_path / "guides.xml").getroot().iter("testcase"))) == 5
    code, found = parsed(call, "test", "latency_spike")
    assert code == 0
    assert found["passed"] == 7
    assert all(each["seconds"] <= each["serial_seconds"] for each in found["results"])


def test_a_guide_that_goes_wrong_fails_the_test(call, tmp_path):
    from agentrt.workflows.guides.telemetry import write_telemetry

    folder = tmp_path / "mine"
    shutil.copytree(shipped_guides()["disk_full"].parent, folder)
    write_telemetry(folder / "recording", "disk_full")
    guide = folder / "guide.md"
    guide.write_text(guide.read_text().replace("log_gib) > 60", "log_gib) > 600"))
    code, out, _ = call("test", str(folder))
    assert code == 1
    assert "FAILED mine DF-1" in out
    assert "missing Step4" in out
