"""Plots as SVG: lengths, scales and cells say what the figures say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.report_html import duration, number, ratio, shorten, tokens
from agentrt.bench.report_plots import Bar, BarGroup, Curve, Stack, bars, cdf, nice_ticks, stacks
from agentrt.bench.report_thumb import MAX_ROWS, dominant_cells, thumbnail
from tests.bench.report_samples import NASTY, empty_run, sample_run


def widths(svg: str) -> list[float]:
    return [float(rect.get("width", "0")) for rect in ET.fromstring(svg).iter("rect")]


class TestBars:
    def test_lengths_are_proportional(self):
        group = BarGroup("Mean", [Bar("a", 400, "400 s", "p0"), Bar("b", 100, "100 s", "p1")])
        long, short = widths(bars([group], shared_scale=True, title="t"))
        assert abs(long / short - 4) < 0.02

    def test_groups_share_a_scale_only_when_told(self):
        groups = [
            BarGroup("x", [Bar("a", 400, "", "p0")]),
            BarGroup("y", [Bar("a", 4, "", "p0")]),
        ]
        together = widths(bars(groups, shared_scale=True, title="t"))
        apart = widths(bars(groups, shared_scale=False, title="t"))
        assert together[0] > 50 * together[1]
        assert apart[0] == apart[1]

    def test_all_zero(self):
        assert widths(bars([BarGroup("x", [Bar("a", 0, "0", "p0")])], shared_scale=True, title="t"))

    def test_stacks_add_up_and_normalise(self):
        rows = [
            Stack("a", [("queue", "queue", 30, "30"), ("decode", "decode", 10, "10")], "40"),
            Stack("b", [("queue", "queue", 5, "5"), ("decode", "decode", 5, "5")], "10"),
        ]
        one, two, three, four = widths(stacks(rows, title="t"))
        assert abs((one + two) / (three + four) - 4) < 0.02
        shares = widths(stacks(rows, title="t", normalise=True))
        assert abs(sum(shares[:2]) - sum(shares[2:])) < 0.1

    def test_labels_are_escaped(self):
        ET.fromstring(
            bars([BarGroup(NASTY, [Bar(NASTY, 1, NASTY, "p0")])], shared_scale=True, title=NASTY)
        )


class TestCurves:
    def test_rises_from_the_floor_to_the_top(self):
        svg = cdf([Curve("a", "p0", [1.0, 2.0, 3.0])], title="t", unit="seconds")
        path = next(node for node in ET.fromstring(svg).iter("path")).get("d", "")
        heights = [float(value) for value in re.findall(r"V([\d.]+)", path)]
        assert heights == sorted(heights, reverse=True)
        assert heights[-1] == 12.0

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
    def test_any_values_draw_inside_the_plot(self, values):
        svg = cdf([Curve("a", "p0", values)], title="t", unit="s")
        path = next(node for node in ET.fromstring(svg).iter("path")).get("d", "")
        assert all(0 <= float(x) <= 560 for x in re.findall(r"H(-?[\d.]+)", path))

    def test_no_values_no_plot(self):
        assert cdf([], title="t", unit="s") == ""

    @settings(deadline=None)
    @given(st.floats(0, 1e7), st.floats(1e-3, 1e7))
    def test_ticks_are_few_and_inside(self, low, span):
        ticks = nice_ticks(low, low + span)
        assert len(ticks) <= 12
        assert all(low - span * 1e-6 <= tick <= low + span * 1.000001 for tick in ticks)


class TestPicture:
    def test_a_cell_takes_what_fills_most_of_it(self):
        spans = [(0, 0.0, 6.0), (2, 6.0, 10.0), (3, 19.0, 20.0)]
        assert dominant_cells(spans, 40.0, 4) == [0, 3, -1, -1]

    def test_draws_every_program_and_the_pool(self):
        svg = ET.fromstring(thumbnail(sample_run(programs=4)))
        labels = [node.text for node in svg.iter("text")]
        assert [name for name in labels if name and name.startswith("program-")] == [
            f"program-{place}" for place in range(4)
        ]
        assert "KV pool" in labels

    def test_is_bounded_for_many_programs(self):
        svg = thumbnail(sample_run(programs=MAX_ROWS + 50, turns=2))
        assert f"Time line of {MAX_ROWS} programs" in svg

    def test_nothing_to_draw(self):
        assert thumbnail(empty_run()) == ""


class TestWords:
    def test_numbers(self):
        assert [number(v) for v in (6352.6, 41.83, 3.14159, 0.0621, 0, 7)] == [
            "6,353",
            "41.8",
            "3.14",
            "0.062",
            "0",
            "7",
        ]

    def test_units(self):
        assert [duration(v) for v in (0.25, 42, 600, 125, 9000)] == [
            "250 ms",
            "42 s",
            "10 min",
            "2 min 5 s",
            "2.50 h",
        ]
        assert [tokens(v) for v in (812, 49_000, 5_390_000)] == ["812", "49 k", "5.39 M"]
        assert [ratio(v) for v in (1.17, 11.34, 250)] == ["1.17×", "11.3×", "250×"]
        assert shorten("abcdef", 4) == "abc…"
