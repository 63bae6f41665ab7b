"""The recordings of the shipped guides are made from a seed, and their incidents fit the guides."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from agentrt.errors import ConfigError, GuideError
from agentrt.workflows.guides import find_guide, guide_name, open_guide, shipped_guides
from agentrt.workflows.guides.cases import case_files, load_case
from agentrt.workflows.guides.telemetry import RECORDERS, write_telemetry
from agentrt.workflows.guides.telemetry.world import World, stamp

GUIDES = sorted(shipped_guides())


def content(directory: Path) -> dict[str, str]:
    """Everything a recording says, by file."""
    found = {
        str(path.relative_to(directory)): path.read_text(encoding="utf-8")
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".db"
    }
    with closing(sqlite3.connect(directory / "telemetry.db")) as connection:
        found["telemetry.db"] = "\n".join(connection.iterdump())
    return found


@pytest.mark.parametrize("guide", GUIDES)
def test_same_seed_same_recording(guide, tmp_path):
    write_telemetry(tmp_path / "a", guide)
    write_telemetry(tmp_path / "b", guide)
    write_telemetry(tmp_path / "c", guide, seed=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_every_guide_has_a_recording_and_at_least_two_incidents_with_other_paths():
    assert sorted(RECORDERS) == GUIDES
    assert len(GUIDES) >= 5
    for path in shipped_guides().values():
        expected = [load_case(file).expected for file in case_files(path)]
        assert len({each.path for each in expected}) >= 2


def test_some_incident_finds_nothing_and_some_is_inconclusive():
    cases = [load_case(file) for path in shipped_guides().values() for file in case_files(path)]
    assert any(case.expected.status == "inconclusive" for case in cases)
    assert any("No known cause" in case.expected.conclusion for case in cases)
    assert len({case.id for case in cases}) == len(cases)


@pytest.mark.parametrize("guide", GUIDES)
def test_incidents_name_steps_and_parameters_of_their_guide(guide):
    path = shipped_guides()[guide]
    read = open_guide(path)
    assert read.name == guide
    steps = {step.id for step in read.steps}
    edges = {f"{step.id}/{edge.name}" for step in read.steps for edge in step.edges}
    known = {parameter.name for parameter in read.parameters}
    for file in case_files(path):
        case = load_case(file)
        assert set(case.expected.path) <= steps
        assert set(case.answers) <= edges
        assert set(case.parameters) <= known
        assert set(case.times) <= steps


def test_the_recording_of_an_unknown_guide_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no recorded telemetry"):
        write_telemetry(tmp_path, "nothing")


def test_a_recording_is_not_written_over(tmp_path):
    write_telemetry(tmp_path, "disk_full")
    with pytest.raises(ConfigError, match="exists already"):
        write_telemetry(tmp_path, "disk_full")


def test_a_recording_says_where_its_sources_are(tmp_path):
    world = World("x")
    world.metric("m", {"a": "b"}, [("2026-01-01T00:00:00Z", 1.5)])
    world.log("worker", "2026-01-01T00:00:00Z", event="x")
    world.write(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "m": [
            {
                "arguments": {"a": "b"},
                "columns": ["ts", "value"],
                "rows": [["2026-01-01T00:00:00Z", 1.5]],
            }
        ]
    }
    sources = tomllib.loads((tmp_path / "sources.toml").read_text())["source"]
    assert {name: source["type"] for name, source in sources.items()} == {
        "telemetry": "sqlite",
        "worker": "log",
        "metrics": "recorded",
    }
    assert all((tmp_path / source["path"]).is_file() for source in sources.values())


@pytest.mark.parametrize("guide", GUIDES)
def test_every_source_of_a_guide_is_recorded(guide, tmp_path):
    write_telemetry(tmp_path, guide)
    queries = tomllib.loads((shipped_guides()[guide].parent / "queries.toml").read_text())
    recorded = tomllib.loads((tmp_path / "sources.toml").read_text())
    assert set(recorded["source"]) == set(queries["source"])


def test_stamp_moves_a_moment():
    assert stamp("2026-02-28T23:59:30Z", 1) == "2026-03-01T00:00:30Z"
    assert stamp("2026-03-01T00:00:00Z", -0.5) == "2026-02-28T23:59:30Z"


def test_a_guide_is_found_by_name_file_and_folder(tmp_path):
    path = shipped_guides()["disk_full"]
    assert find_guide("disk_full") == find_guide(str(path)) == find_guide(str(path.parent)) == path
    assert guide_name(path) == "disk_full"
    assert guide_name(tmp_path / "mine.md") == "mine"
    with pytest.raises(GuideError, match="no guide 'nothing'"):
        find_guide("nothing")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[incident]\nid = 'x'", "no title"),
        ("[incident]\nid='x'\ntitle='y'\n[wrong]\n", r"no section \[wrong\]"),
        ("incident = 3", "not a section"),
        ("[incident]\nid='x'\ntitle='y'\n[expected]\nstatus='fine'", "cannot end in 'fine'"),
        ("[incident]\nid='x'\ntitle='y'\n[expected]\npath='Step1'", "not a list"),
        ("[incident]\nid='x'\ntitle='y'\n[times]\nStep1='long'", "no number"),
        ("[incident]\nid='x'\ntitle='y'\n[times]\nStep1=-1", "negative"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_wrong_incident_is_refused_by_name(tmp_path, text, complaint):
    file = tmp_path / "case.toml"
    file.write_text(text)
    with pytest.raises(GuideError, match=complaint) as caught:
        load_case(file)
    assert "case.toml" in str(caught.value)


def test_an_incident_without_expectations_can_still_be_run(tmp_path):
    file = tmp_path / "case.toml"
    file.write_text("[incident]\nid='x'\ntitle='y'\n[parameters]\nn=3\non=true\nday=2026-01-01\n")
    case = load_case(file)
    assert case.expected is None
    assert case.parameters == {"n": "3", "on": "true", "day": "2026-01-01"}
    assert case.text == "x: y"
