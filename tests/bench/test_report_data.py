"""The data behind the time line: packing loses nothing that the page shows."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.records import KVSample, PinRecord, ProgramRecord
from agentrt.bench.report_data import (
    OUTCOMES,
    REASONS,
    all_programs,
    pack_column,
    pack_run,
    sample_kv,
)
from agentrt.bench.report_html import script_json
from tests.bench.report_samples import NASTY, empty_run, sample_run, tool, turn


def unpack(packed: Any, count: int) -> list[Any]:
    """An independent reader of one packed column."""
    if isinstance(packed, list):
        return packed
    values = [packed["k"]] * count
    for place, value in zip(accumulate(packed["i"]), packed["v"], strict=True):
        values[place] = value
    return values


def columns(table: dict[str, Any]) -> dict[str, list[Any]]:
    count = table["count"]
    return {name: unpack(packed, count) for name, packed in table.items() if name != "count"}


def turns_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Rebuild what the page knows of each turn, times in seconds."""
    rows, before, unit = [], 0, data["unit"]
    table = columns(data["turns"])
    lanes, indices = accumulate(table["lane"]), accumulate(table["index"])
    for place, (lane, index) in enumerate(zip(lanes, indices, strict=True)):
        cell = {name: values[place] for name, values in table.items()}
        begin = before + cell["begin"]
        before = begin + cell["end"]
        program, context = data["lanes"][lane]
        rows.append(
            {
                "program": data["strings"][data["programs"]["name"][program]],
                "context": data["strings"][context],
                "index": index,
                "times": [
                    None if ticks is None else (begin + ticks) * unit
                    for ticks in (0, cell["admit"], cell["token"], cell["end"])
                ],
                "prompt": cell["prompt"],
                "cached": cell["prompt"] - cell["fresh"],
                "prefilled": cell["fresh"] + cell["extra"],
                "output": cell["output"],
                "ideal": cell["ideal"],
                "reason": REASONS[cell["reason"]],
                "text": data["strings"][cell["text"]],
            }
        )
    return rows


class TestColumns:
    @settings(deadline=None)
    @given(st.lists(st.one_of(st.none(), st.integers(-5, 5), st.integers())))
    def test_round_trips(self, values):
        packed = json.loads(json.dumps(pack_column(values)))
        assert unpack(packed, len(values)) == values

    def test_a_constant_column_takes_no_room(self):
        assert len(json.dumps(pack_column([7] * 10_000))) < 40


class TestRun:
    def test_every_turn_survives_a_round_trip(self):
        run = sample_run(programs=5, turns=6)
        run.turns.append(turn("program-1", 0, context="side", submitted=3.0, finished=9.0))
        data = json.loads(script_json(pack_run(run)))
        read = {(row["program"], row["context"], row["index"]): row for row in turns_of(data)}
        assert len(read) == len(run.turns)
        for record in run.turns:
            row = read[record.program, record.context, record.index]
            times = [record.submitted, record.admitted, record.first_token, record.finished]
            assert row["times"] == pytest.approx(times, abs=data["unit"])
            tokens = (row["prompt"], row["cached"], row["prefilled"], row["output"], row["ideal"])
            assert tokens == (
                record.prompt_tokens,
                record.cached_tokens,
                record.prefilled_tokens,
                record.output_tokens,
                record.ideal_tokens,
            )

    def test_turns_that_never_started_keep_their_gaps(self):
        run = empty_run()
        waiting = turn(admitted=None, first_token=None, reason="cancelled", queue_seconds=4.0)
        started = turn("p1", first_token=None, reason="failed")
        run.turns += [waiting, started]
        first, second = turns_of(pack_run(run))
        assert first["times"] == [0.0, None, None, 4.0]
        assert first["reason"] == "cancelled"
        assert second["times"] == [0.0, 1.0, None, 4.0]
        assert second["reason"] == "failed"

    def test_tools_and_pins_survive_a_round_trip(self):
        run = empty_run()
        run.tools += [
            tool(start=1.0, end=1.25, exit_code=137, peak_memory=2**31, cpu_seconds=0.5),
            tool(start=2.0, end=9.0, name="read", status="timeout", command="cat x"),
        ]
        run.pins.append(PinRecord("p0", "main", 4.0, 7.5, float("inf"), 480, "broken"))
        data = pack_run(run)
        table = columns(data["tools"])
        assert table["exit"] == [137, None]
        assert table["memory"] == [2**31, None]
        assert table["cpu"] == [500, None]
        begins = [ticks * data["unit"] for ticks in accumulate(table["begin"])]
        assert begins == pytest.approx([1.0, 2.0])
        assert [data["strings"][n] for n in table["command"]] == ["", "cat x"]
        pins = columns(data["pins"])
        assert (pins["ttl"], pins["tokens"]) == ([None], [480])
        assert OUTCOMES[pins["outcome"][0]] == "broken"

    def test_unusual_text_stays_inside_its_script(self):
        run = empty_run()
        run.turns.append(turn(program=NASTY, text=NASTY))
        text = script_json(pack_run(run))
        assert "<" not in text
        assert ">" not in text
        assert "\u2028" not in text
        [row] = turns_of(json.loads(text))
        assert row["text"].startswith("</script><img")

    def test_programs_are_in_order_of_arrival(self):
        run = empty_run()
        for name, at in (("late", 9.0), ("early", 1.0), ("middle", 5.0)):
            run.programs.append(ProgramRecord(name, "t", at, at + 1, "finished"))
        assert [row.program for row in all_programs(run)] == ["early", "middle", "late"]

    def test_programs_without_a_record_still_get_a_row(self):
        run = empty_run()
        run.turns.append(turn("cut-off", submitted=2.0, finished=4.0))
        [row] = all_programs(run)
        assert (row.program, row.arrival, row.finished) == ("cut-off", 2.0, 4.0)
        assert row.outcome == "cancelled"

    def test_an_empty_run_packs(self):
        data = pack_run(empty_run())
        assert data["lanes"] == []
        assert data["turns"]["count"] == 0


class TestSamples:
    @settings(deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 100)), max_size=80))
    def test_keeps_true_moments_in_order_and_the_peak(self, pairs):
        rows = [KVSample(at, used, 0, 0, 100 - used, 1, 1) for at, used in sorted(pairs)]
        kept = sample_kv(rows, 10)
        assert len(kept) <= 10
        assert [row.time for row in kept] == sorted(row.time for row in kept)
        assert set(kept) <= set(rows)
        if rows:
            assert max(row.leased for row in kept) == max(row.leased for row in rows)
