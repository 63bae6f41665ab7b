"""Foreign formats on small files made here; the real ones where they are at hand."""

from __future__ import annotations

import json

import pytest

from agentrt.bench.importers import detect_format, import_workload, load_workload
from agentrt.bench.parse import read_workload, write_workload
from agentrt.errors import ConfigError, WorkloadError
from tests.bench.builders import small_workload, write_workload_file


def calls(session: str, *rows: tuple[int, str, str]) -> str:
    lines = [
        {"timestamp": at, "input": text, "output": output, "session_id": session}
        for at, text, output in rows
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_miniswe_becomes_a_conversation_in_time_order(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(
        calls(
            "s1",
            (3_500_000, "fix it\nout: 1\nout: 22", "done"),
            (1_000_000, "fix it\n", "first\n```bash\nls -la\n```"),
            (2_000_000, "fix it\nout: 1\n", "```bash\ncat a\n```\n```bash\npytest\n```"),
        )
    )
    assert detect_format(path) == "miniswe"
    made = load_workload(path).programs[0]
    assert (made.program, made.literal, made.arrival) == ("s1", True, 0.0)
    said = [row.messages[0]["content"] for row in made.turns]
    assert said == ["fix it\n", "out: 1\n", "out: 22"]
    assert [row.output for row in made.turns][2] == "done"
    assert [row.gap for row in made.turns] == [1.0, 1.5, None]
    assert [row.next_tool for row in made.turns] == ["bash:ls", "multi_tool", None]
    assert made.turns[1].reused_tokens == made.turns[0].prompt_tokens + made.turns[0].output_tokens


def test_a_miniswe_input_that_does_not_grow_is_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(calls("s1", (1, "abc", "x"), (2, "abd", "y")))
    with pytest.raises(WorkloadError, match=r"s\.jsonl:2: input: does not extend"):
        load_workload(path)


def test_mooncake_requests_become_programs_of_one_turn(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 513, "output_length": 0, "hash_ids": [0, 2]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_workload(path).programs
    assert (first.arrival, second.arrival) == (0.0, 1.5)
    assert first.turns[0].blocks == (0, 1)
    assert (second.turns[0].prompt_tokens, second.turns[0].output_tokens) == (513, 1)
    assert len(load_workload(path).select(token_scale=0.3).programs) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0]},
        {"timestamp": 0, "input_length": 0, "output_length": 5, "hash_ids": []},
        {"timestamp": 0, "input_length": "6", "output_length": 5, "hash_ids": [0]},
        {"timestamp": 0, "input_length": 6, "output_length": 5},
    ],
)
def test_a_wrong_mooncake_row_is_refused(tmp_path, row):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(WorkloadError, match=r"m\.jsonl:1"):
        import_workload("mooncake", path)


def test_a_directory_is_read_file_by_file(tmp_path):
    (tmp_path / "b.jsonl").write_text(calls("s2", (1, "x", "y")))
    (tmp_path / "a.jsonl").write_text(calls("s1", (1, "x", "y")))
    (tmp_path / "notes.txt").write_text("not a trace")
    assert [one.program for one in load_workload(tmp_path).programs] == ["s1", "s2"]
    (tmp_path / "c.jsonl").write_text(calls("s1", (1, "x", "y")))
    with pytest.raises(WorkloadError, match="'s1' appears twice"):
        load_workload(tmp_path)


def test_our_own_format_is_told_apart(tmp_path):
    path = write_workload_file(tmp_path / "tiny.jsonl", small_workload())
    assert detect_format(path) == "agentrt"
    assert load_workload(path).programs == small_workload().programs


def test_an_unknown_format_names_those_that_are_known(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"hello": 1}\n')
    with pytest.raises(WorkloadError, match="miniswe, mooncake"):
        load_workload(path)
    with pytest.raises(ConfigError, match="miniswe, mooncake"):
        import_workload("burst", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkloadError, match=r"no \*\.jsonl"):
        load_workload(tmp_path / "empty")
    with pytest.raises(WorkloadError, match="does not exist"):
        load_workload(tmp_path / "none")


def test_an_imported_workload_survives_its_file(tmp_path):
    (tmp_path / "s.jsonl").write_text(calls("s1", (1, "abc", "x"), (2, "abcdef", "y")))
    made = import_workload("miniswe", tmp_path / "s.jsonl")
    write_workload(made.programs, tmp_path / "out.jsonl")
    assert read_workload(tmp_path / "out.jsonl").programs == made.programs


@pytest.mark.requires_data
def test_the_recorded_sessions_import_whole(shared_data):
    found = load_workload(shared_data / "miniswe")
    assert (len(found.programs), sum(len(one.turns) for one in found.programs)) == (10, 206)
    assert found.literal


@pytest.mark.requires_data
def test_the_recorded_requests_import_whole(shared_data):
    path = shared_data / "mooncake" / "conversation_trace.jsonl"
    assert len(load_workload(path).programs) == 12_031
