"""Programs whose contexts run side by side: when each turn starts, and how such programs end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentrt.bench.isolated import isolated_seconds
from agentrt.bench.parse import read_workload, write_workload
from agentrt.bench.transforms import split_turns
from agentrt.bench.workload import Program, Turn
from agentrt.errors import WorkloadError
from agentrt.scheduling.surroundings import Foresight
from agentrt.simulation.future import Future
from agentrt.simulation.programs import Foretelling, ProgramRun
from tests.bench.builders import COST, play, workload


def fork(name="p", **fields):
    """A main turn, two sub-agents of two turns and one, and a turn that waits for both."""
    return Program(
        name,
        (
            Turn("main", 40, 0, 4, gap=1.0, after=()),
            Turn("a", 30, 0, 4, gap=0.5, after=(0,)),
            Turn("b", 30, 0, 4, gap=6.0, after=(0,)),
            Turn("a", 60, 34, 4, gap=0.0, after=(1,)),
            Turn("main", 80, 44, 4, after=(2, 3)),
        ),
        **fields,
    )


@pytest.mark.parametrize("policy", ["fcfs", "program-fcfs", "fixed-ttl=30", "continuum"])
def test_turns_start_when_those_before_them_and_their_gaps_are_over(policy):
    record = play([(0.0, fork()), (0.25, fork("q"))], policy=policy)
    assert {row.outcome for row in record.programs} == {"finished"}
    for name in ("p", "q"):
        turns = {row.index: row for row in record.turns if row.program == name}
        program = fork(name)
        assert len(turns) == 5
        for index, row in turns.items():
            ends = [
                turns[place].finished + (program.turns[place].gap or 0.0)
                for place in program.predecessors(index)
            ]
            assert row.submitted == max(ends, default=row.submitted)
        assert turns[1].submitted == turns[2].submitted
    assert all(row.cached_tokens for row in record.turns if row.index in (3, 4))


def test_alone_it_takes_what_its_run_takes():
    record = play([(0.0, fork())])
    assert record.programs[0].finished == isolated_seconds([fork()], COST)["p"]
    in_order = fork().in_order()
    assert not in_order.branches
    assert play([(0.0, in_order)]).programs[0].finished > record.programs[0].finished


def test_a_branch_that_can_never_run_fails_the_program_once():
    huge = replace(fork().turns[2], prompt_tokens=4000)
    broken = replace(fork(), turns=(*fork().turns[:2], huge, *fork().turns[3:]))
    record = play([(0.0, broken), (0.5, fork("q"))])
    outcomes = {row.program: row.outcome for row in record.programs}
    assert outcomes == {"p": "failed", "q": "finished"}
    assert len(record.programs) == 2


def test_it_comes_back_from_a_file_as_it_was(tmp_path):
    path = tmp_path / "w.jsonl"
    write_workload([fork()], path)
    assert read_workload(path).programs == (fork(),)
    assert workload(fork()).select("main").programs == (fork(),)
    write_workload([replace(fork(), turns=(replace(fork().turns[0], after=(0,)),))], path)
    with pytest.raises(WorkloadError, match="after"):
        read_workload(path)


def test_split_turns_wait_for_the_last_parts():
    parts = split_turns(workload(fork()), 2).programs[0].turns
    assert [row.after for row in parts] == [
        (), None, (1,), None, (1,), None, (3,), None, (5, 7), None,
    ]  # fmt: skip
    record = play([(0.0, Program("p", parts))])
    assert record.programs[0].outcome == "finished"


def test_the_future_of_branches_is_told():
    future: Foresight = Future()
    told = Foretelling(future, COST)
    run = ProgramRun(fork(), 0.0).first_turns()[0]
    run.prompt()
    ready = run.next_turns(3.0)
    assert [(time, one.turn.context) for time, one in ready] == [(3.0, "a"), (3.0, "b")]
    told.branches(run, 2.0)
    assert future.returns_at("p\0a") == future.returns_at("p\0b") == 3.0
    alone = COST.turn_seconds(30, 30, 4)
    assert future.returns_at("p\0main") == 3.0 + alone + 6.0
    assert future.remaining_seconds("p") == pytest.approx(
        1.0 + alone + 6.0 + COST.turn_seconds(36, 80, 4)
    )
