"""States of programs, turns and tool calls: only legal moves, whatever the order of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import InternalError, InvalidRequest
from agentrt.lifecycle import TURN_MOVES, Life, ProgramLife, ProgramState, TurnState


def test_a_turn_counts_before_a_tool_call():
    life = ProgramLife("p")
    assert life.state is ProgramState.READY
    life.start_tool("t")
    assert life.state is ProgramState.ACTING
    life.start_turn("1")
    assert life.state is ProgramState.THINKING
    life.move_turn("1", TurnState.RUNNING)
    life.move_turn("1", TurnState.ENDED)
    life.end_tool("t")
    assert life.state is ProgramState.READY


def test_an_ended_program_takes_no_more_work():
    life = ProgramLife("p")
    life.start_turn("1")
    life.end()
    life.end()
    assert life.state is ProgramState.ENDED
    life.move_turn("1", TurnState.ENDED)
    life.move_turn("1", TurnState.ENDED)
    for start in (life.start_turn, life.start_tool):
        with pytest.raises(InvalidRequest, match="has ended"):
            start("2")


@given(st.lists(st.sampled_from(list(TurnState)), max_size=8))
def test_a_turn_moves_only_as_its_table_says(targets):
    life = Life(TurnState.WAITING, TURN_MOVES)
    for target in targets:
        before = life.state
        if target in TURN_MOVES[before]:
            life.move(target)
            assert life.state is target
        else:
            with pytest.raises(InternalError):
                life.move(target)
            assert life.state is before
