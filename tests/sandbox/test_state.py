"""Records of runs: who owns what, and whether the owner lives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.sandbox import RunState, state_directory
from agentrt.sandbox.state import (
    Owner,
    judge,
    parse_record,
    read_records,
    start_time,
)

NUMBERS = st.integers(0, 1 << 40)
OWNERS = st.builds(Owner, NUMBERS, NUMBERS, st.uuids().map(str), NUMBERS)


@given(OWNERS)
def test_an_owner_survives_its_label(owner):
    assert Owner.parse(owner.text()) == owner


@given(st.text())
def test_other_labels_are_no_owner(text):
    owner = Owner.parse(text)
    assert owner is None or Owner.parse(owner.text()) == owner
    parse_record(text)


@given(OWNERS, NUMBERS)
def test_judgement(owner, other):
    here = {"boot": owner.boot, "pidns": owner.pidns}
    assert judge(owner, **here, start=owner.start) == "alive"
    assert judge(owner, **here, start=None) == "dead"
    assert judge(owner, **here, start=owner.start + 1 + other) == "dead"
    elsewhere = {"boot": owner.boot, "pidns": owner.pidns + 1 + other}
    assert judge(owner, **elsewhere, start=None) == "unknown"
    assert judge(owner, boot="another", pidns=owner.pidns, start=owner.start) == "dead"


def test_start_time_tells_processes_apart():
    ours = start_time(os.getpid())
    assert ours == Owner.current().start
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert start_time(child.pid) >= ours
        child.kill()
        # ended but not waited for: a zombie owns nothing any more
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(child.pid) is None
    assert start_time(child.pid) is None


def test_a_name_with_spaces_and_parentheses(tmp_path):
    (tmp_path / "7").mkdir()
    fields = " ".join(str(number) for number in range(4, 40))
    (tmp_path / "7" / "stat").write_text(f"7 (a) S (b) S {fields}")
    assert start_time(7, tmp_path) == 22


def test_a_run_registers_and_leaves(own_state):
    with RunState.open() as state:
        assert state.path.exists()
        assert stat.S_IMODE(state.temp.stat().st_mode) == 0o700
        state.note(cgroups=(Path("/a"),), docker=True)
        state.note(cgroups=(Path("/b"),))
        (record,) = read_records(state.directory)
        assert record == state.record
        assert record.cgroups == ("/a", "/b")
        assert record.docker
        assert record.owner == Owner.current()
    state.close()
    assert list(own_state.iterdir()) == []


def test_records_of_strangers_and_broken_ones_are_passed_over(own_state):
    with RunState.open() as state:
        good = state.path.read_text()
        for name, text in {
            "broken.json": "{",
            "list.json": "[]",
            "renamed.json": good,
            "empty.json": "",
            "typed.json": json.dumps({**json.loads(good), "owner": 3}),
        }.items():
            (state.directory / name).write_text(text)
        assert [record.run_id for record in read_records(state.directory)] == [state.run_id]
        for path in state.directory.glob("*.json"):
            if path != state.path:
                path.unlink()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="AGENTRT_STATE"):
        RunState.open(tmp_path / "file" / "records")


def test_where_records_live(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert state_directory({"AGENTRT_STATE": "/x/y"}) == Path("/x/y")
    assert state_directory({"XDG_RUNTIME_DIR": "/run/user/1000"}) == Path("/run/user/1000/agentrt")
    assert state_directory({}).name == "agentrt-state-1000"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_directory({}) == Path("/run/agentrt")
