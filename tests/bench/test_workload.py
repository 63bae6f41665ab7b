"""Workload files: what is read, what is refused and how it is said, what cuts do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.parse import parse_program, read_workload, write_workload
from agentrt.bench.workload import Program, Tool, Turn, Workload
from agentrt.errors import ConfigError, WorkloadError
from tests.bench.builders import program, small_workload, turn, workload, write_workload_file

DESIGN_EXAMPLE = {
    "program": "dask-11628",
    "tenant": "a",
    "arrival": 1.5,
    "deadline": None,
    "source": "…",
    "turns": [
        {"context": "main", "prompt_tokens": 13649, "output_tokens": 92, "gap": 0.011},
        {
            "context": "main",
            "prompt_tokens": 13718,
            "reused_tokens": 13649,
            "output_tokens": 5,
            "gap": None,
            "tools": [
                {
                    "name": "bash",
                    "kind": "test",
                    "duration": 3.2,
                    "peak_memory": 262144000,
                    "cpu_seconds": 2.1,
                    "exit_code": 0,
                }
            ],
        },
    ],
    "memory_curve": [[0.0, 188743680]],
}


def test_the_format_of_the_design_is_read():
    made = parse_program(DESIGN_EXAMPLE, "x:1")
    assert (made.program, made.tenant, made.arrival) == ("dask-11628", "a", 1.5)
    assert made.turns[1].reused_tokens == 13649
    tool = made.turns[1].tools[0]
    assert (tool.key, tool.peak_memory, tool.cpu_seconds) == ("bash:test", 262144000, 2.1)
    assert made.turns[1].next_tool == "bash:test"
    assert not made.literal


def changed(**fields):
    turns = [dict(DESIGN_EXAMPLE["turns"][0]) | fields]
    return DESIGN_EXAMPLE | {"turns": turns}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "not an object"),
        (DESIGN_EXAMPLE | {"program": None}, "program: is missing"),
        (DESIGN_EXAMPLE | {"program": 7}, "program: expected text"),
        (DESIGN_EXAMPLE | {"turns": []}, "turns: is missing"),
        (DESIGN_EXAMPLE | {"turns": {}}, "turns"),
        (DESIGN_EXAMPLE | {"turns": [3]}, r"turns\[0\]"),
        (DESIGN_EXAMPLE | {"arrival": -1}, "arrival"),
        (DESIGN_EXAMPLE | {"arrival": "now"}, "arrival: expected a number"),
        (changed(prompt_tokens=None), "prompt_tokens: is missing"),
        (changed(prompt_tokens=0), "prompt_tokens: is 0"),
        (changed(prompt_tokens=1.5), "prompt_tokens: expected a whole number"),
        (changed(prompt_tokens=True), "prompt_tokens: expected a whole number"),
        (changed(output_tokens=0), "output_tokens: is 0"),
        (changed(reused_tokens=20000), "reused_tokens"),
        (changed(reused_tokens=10), "held only 0 tokens"),
        (changed(prompt="hello"), "output: is missing"),
        (changed(output="hello"), "prompt: is missing"),
        (changed(messages=[{"role": "user"}], output="x"), r"messages\[0\]: content"),
        (changed(blocks=[1, 2], block_tokens=512), "blocks: cover 1024"),
        (changed(blocks=["a"], block_tokens=512), "blocks: expected"),
        (changed(tools=[{"kind": "test"}]), r"tools\[0\]: name"),
        (changed(gap=float("inf")), "gap"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(data, said):
    with pytest.raises(WorkloadError, match=said) as caught:
        parse_program(data, "file.jsonl:3")
    assert str(caught.value).startswith("file.jsonl:3")
    assert caught.value.remedy


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(DESIGN_EXAMPLE) + "\n\n{oops\n")
    with pytest.raises(WorkloadError, match=r"w\.jsonl:3: not JSON"):
        read_workload(path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "w.jsonl"
    path.write_text(content)
    with pytest.raises(WorkloadError, match="no program"):
        read_workload(path)


def test_a_missing_file_and_a_repeated_name_are_refused(tmp_path):
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_workload(tmp_path / "none.jsonl")
    path = tmp_path / "w.jsonl"
    path.write_text(2 * (json.dumps(DESIGN_EXAMPLE) + "\n"))
    with pytest.raises(WorkloadError, match="appears twice"):
        read_workload(path)


def test_what_is_written_is_read_again(tmp_path):
    literal = Turn(
        "main",
        prompt_tokens=3,
        reused_tokens=0,
        output_tokens=2,
        gap=1.0,
        tools=(Tool("bash", command="ls"),),
        messages=({"role": "user", "content": "zwölf"},),
        output="ls",
    )
    blocks = Turn("main", 700, 0, 5, blocks=(4, 9), block_tokens=512)
    programs = [Program("a", (literal,), arrival=2.0), Program("b", (blocks,), tenant="t")]
    path = tmp_path / "w.jsonl"
    assert write_workload(programs, path) == 2
    assert list(read_workload(path).programs) == programs


def test_a_literal_turn_without_counts_is_estimated():
    rows = [
        {"prompt": "x" * 40, "output": "y" * 8, "gap": 1},
        {"messages": [{"role": "tool", "content": "z" * 20}], "output": "y"},
    ]
    made = parse_program({"program": "p", "turns": rows}, "x:1")
    counts = [(row.prompt_tokens, row.reused_tokens, row.output_tokens) for row in made.turns]
    assert counts == [(10, 0, 2), (17, 12, 1)]
    assert made.literal


def test_select_takes_main_contexts_unless_told():
    rows = (turn(40, 2, gap=3.0), turn(20, 2, context="side"), turn(50, 2, reused=42))
    chosen = workload(program("a", *rows))
    assert [row.context for row in chosen.select().programs[0].turns] == ["main", "main"]
    assert chosen.select().programs[0].turns[0].gap == 3.0
    assert len(chosen.select("all").programs[0].turns) == 3
    with pytest.raises(WorkloadError, match="--contexts all"):
        workload(program("a", turn(20, 2, context="side"))).select()


def test_limit_and_scale_must_be_positive():
    for options in ({"limit": 0}, {"token_scale": 0.0}, {"token_scale": -1.0}):
        with pytest.raises(ConfigError):
            small_workload().select(**options)
    assert len(small_workload(count=4).select(limit=2).programs) == 2


@given(scale=st.floats(0.001, 3.0), count=st.integers(1, 4))
def test_a_scaled_workload_is_still_a_workload(scale, count):
    scaled = small_workload(count=count, turns=4).select(token_scale=scale)
    for one in scaled.programs:
        held = 0
        for row in one.turns:
            assert 0 <= row.reused_tokens <= min(held, row.prompt_tokens)
            assert row.prompt_tokens >= 1
            assert row.output_tokens >= 1
            held = row.prompt_tokens + row.output_tokens


def test_scaled_texts_still_extend_each_other():
    literal = Turn("main", 4, 0, 4, messages=({"role": "user", "content": "abcdefgh"},), output="1")
    cut = workload(program("a", literal)).select(token_scale=0.25).programs[0].turns[0]
    assert cut.messages == ({"role": "user", "content": "ab"},)
    assert cut.output == "1"


def test_facts_and_digest():
    chosen = small_workload(count=2, turns=2).select()
    facts = chosen.facts()
    turns = [row for one in chosen.programs for row in one.turns]
    assert (facts.programs, facts.turns) == (2, 4)
    assert facts.ideal_tokens == sum(row.prompt_tokens - row.reused_tokens for row in turns)
    assert facts.tool_seconds == 1.0
    assert chosen.digest() == small_workload(count=2, turns=2).select().digest()
    assert chosen.digest() != small_workload(count=3, turns=2).select().digest()


def test_a_file_written_by_hand(tmp_path):
    made = small_workload()
    found = read_workload(write_workload_file(tmp_path / "tiny.jsonl", made))
    assert isinstance(found, Workload)
    assert found.programs == made.programs


@pytest.mark.requires_data
def test_the_recorded_coding_agents_are_read(shared_data):
    found = read_workload(shared_data / "agentcgroup" / "glm.jsonl")
    assert (len(found.programs), sum(len(one.turns) for one in found.programs)) == (111, 5641)
    facts = found.select().facts()
    assert (facts.turns, facts.ideal_tokens >= 5_333_514) == (5631, True)
