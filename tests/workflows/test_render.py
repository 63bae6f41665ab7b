"""Guides written as markdown and read back; plans drawn as Mermaid, DOT, ASCII and SVG."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import GuideError
from agentrt.workflows.guide import Edge, Guide, Parameter, QueryUse, Retry, Step, StepPolicy
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.plan import make_plan
from agentrt.workflows.render import (
    edge_label,
    render_guide,
    same_guide,
    to_ascii,
    to_dot,
    to_mermaid,
    to_svg,
)
from agentrt.workflows.render_layout import BOX, GAP, lay_out
from tests.workflows.test_parse import GUIDE

_WORD = st.text(alphabet="abcXYZ019äß_{}%&<>|", min_size=1, max_size=8)
_WORDS = st.lists(_WORD, min_size=1, max_size=5).map(" ".join)
_PROSE = st.lists(
    st.one_of(_WORDS, st.just("| a | b |"), st.just("```sql\n## x\n<!-- y -->\n```"), st.just("")),
    max_size=6,
).map(lambda lines: "\n".join(lines).strip("\n"))
_NAMES = st.sampled_from(["depth", "errors", "region", "start_time"])
_PREDICATES = st.sampled_from(["max(q.depth) > 5000", "errors.rows == 0", "a in ['x', 'y']"])
_VALUES = st.one_of(_WORDS, st.sampled_from(['a "b", c', "x=1; y", "(z)", "{region}", "1,2"]))
_SECONDS = st.sampled_from([0.25, 1.0, 30.0, 90.5, 3600.0])


@st.composite
def _policies(draw):
    gate = draw(st.sampled_from(["none", "approve"]))
    join = draw(st.sampled_from(["any", "all", "quorum"]))
    return StepPolicy(
        join=join,
        quorum=draw(st.integers(1, 5)) if join == "quorum" else 1,
        timeout=draw(_SECONDS),
        retry=draw(st.builds(Retry, st.integers(1, 9), _SECONDS, st.just(1.5), _SECONDS)),
        idempotent=draw(st.booleans()),
        gate=gate,
        gate_default=draw(st.sampled_from(["approve", "deny"])) if gate == "approve" else "deny",
        gate_timeout=draw(st.none() | _SECONDS) if gate == "approve" else None,
        tokens=draw(st.none() | st.integers(1, 99999)),
        memory=draw(st.none() | st.sampled_from([1, 1000, 1 << 20, 3 << 29, 1 << 30])),
        cpu=draw(st.none() | st.sampled_from([0.5, 1.0, 16.0])),
        pids=draw(st.none() | st.integers(1, 999)),
        network=draw(st.sampled_from(["none", "host"])),
    )


@st.composite
def _edges(draw, source, targets):
    found = []
    for target in draw(st.lists(st.sampled_from(targets), unique=True, max_size=4)):
        edge = Edge(f"edge_{source}_{target}", source, target)
        kind = draw(st.sampled_from(["always", "prose", "code", "otherwise"]))
        remark = draw(st.just("") | _WORDS)
        if kind == "prose":
            edge = replace(edge, condition=draw(_WORDS))
        elif kind == "code":
            edge = replace(edge, predicate=draw(_PREDICATES), condition=remark)
        elif kind == "otherwise":
            edge = replace(edge, otherwise=True, condition=remark)
        found.append(edge)
    return tuple(found)


@st.composite
def _steps(draw, index, ids):
    step_id = ids[index]
    edges = draw(_edges(step_id, [*ids[index + 1 :], "end"]))
    concludes = any(edge.target == "end" for edge in edges) and draw(st.booleans())
    return Step(
        id=step_id,
        title=draw(_WORDS),
        instructions=draw(_PROSE),
        queries=tuple(draw(st.lists(
            st.builds(QueryUse, _NAMES, st.dictionaries(_NAMES, _VALUES, max_size=2)), max_size=2
        ))),
        command=draw(st.none() | st.sampled_from(["echo 1", "cat <<X\n```\nX", "  true\n\nfalse"])),
        for_each=draw(st.none() | st.just("queues.name")),
        guide=draw(st.none() | st.just("deeper/other.md")),
        edges=edges,
        conclusion=draw(_WORDS) if concludes else None,
        reads=tuple(draw(st.lists(st.sampled_from(ids), unique=True, max_size=2))),
        policy=draw(_policies()),
    )  # fmt: skip


@st.composite
def _guides(draw):
    ids = ["Step1", "Step2", "Step2.1", "Step3", "Step10"][: draw(st.integers(1, 5))]
    parameters = draw(st.lists(
        st.builds(
            lambda name, about, kind, default, required: Parameter(
                name, about, kind, required and default is None, default
            ),
            _NAMES,
            st.just("") | _WORDS,
            st.sampled_from(["string", "integer", "number", "boolean", "timestamp"]),
            st.none() | _VALUES,
            st.booleans(),
        ),
        unique_by=lambda parameter: parameter.name,
        max_size=3,
    ))  # fmt: skip
    return Guide(
        name="g",
        title=draw(_WORDS),
        steps=tuple(draw(_steps(at, ids)) for at in range(len(ids))),
        parameters=tuple(parameters),
        overview=draw(_PROSE),
        path="dir/g.md",
        queries_file=draw(st.none() | st.sampled_from(["q.toml", "a b; c.toml"])),
        on_conclusion=draw(st.sampled_from(["cancel", "drain", "finish-join"])),
    )


@given(_guides())
@settings(max_examples=150, deadline=None)
def test_a_written_guide_reads_back_the_same(guide):
    text = render_guide(guide)
    again = parse_guide(text, name="g", path="dir/g.md")
    assert same_guide(guide, again)
    assert render_guide(again) == text


def test_a_guide_written_by_hand_reads_back_the_same():
    guide = parse_guide(GUIDE, name="g")
    assert same_guide(guide, parse_guide(render_guide(guide), name="g"))


_PIECES = [*GUIDE.splitlines(), "", "", "- Step 1", "```", "- if a: b: Step 2", "## Step 9 - Z",
           "- if `a > 1` and `b`: Step 2", "### Connections", "- otherwise (all (quiet)): end",
           "<!-- x -->", "- `a` (string, default \"\"): b", "``a``", "  - cpu: 2",
           "- `q` with a='b\"', c=\"d\\\"e\""]  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=30))
@settings(max_examples=300, deadline=None)
def test_whatever_can_be_read_can_be_written(lines):
    text = "\n".join(
        ["# T", *lines[:4], "## Step 1 - A", *lines[4:12], "## Step 2 - B", *lines[12:]]
    )
    try:
        guide = parse_guide(text, name="g")
    except GuideError:
        return
    assert same_guide(guide, parse_guide(render_guide(guide), name="g"))


def test_a_guide_with_several_entries_reads_back_the_same():
    text = "# T\n## Start\n- if hot: Step 2\n- Step 1\n## Step 1 - A\n- x\n## Step 2 - B\n"
    guide = parse_guide(text, name="g")
    assert same_guide(guide, parse_guide(render_guide(guide), name="g"))


def test_what_the_format_cannot_say_is_refused():
    step = Step("Step1", "A", edges=(Edge("my_edge", "Step1", "end"),))
    with pytest.raises(GuideError, match="cannot be written"):
        render_guide(Guide("g", "T", (step,)))


NASTY = 'a "quoted" <b>&amp; `code` \\ |x| #1;\nend'


def _nasty():
    steps = (
        Step("Step1", NASTY, edges=(
            Edge("e1", "Step1", "Step2", condition=NASTY),
            Edge("e2", "Step1", "Step3.1", predicate="a < 'b\"'"),
            Edge("e3", "Step1", "end", otherwise=True),
        )),
        Step("Step2", "B", for_each="q.a", edges=(Edge("e4", "Step2", "Step3.1"),)),
        Step("Step3.1", "C", policy=StepPolicy(join="all", gate="approve"),
             edges=(Edge("e5", "Step3.1", "end"),)),
    )  # fmt: skip
    return make_plan(Guide("g", NASTY, steps))


STATES = {"start": "succeeded", "Step1": "failed", "Step2": "skipped", "e1": "disabled"}


def test_mermaid():
    text = to_mermaid(_nasty(), STATES)
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    assert len([line for line in lines if "-->" in line or "-.->" in line]) == 6
    assert '    Step3_1["Step3.1: C"]' in lines
    assert "    class Step1 failed" in lines
    assert not re.search(r"^\s*end\b", text, re.MULTILINE)
    labels = re.findall(r'"([^"]*)"', text)
    assert len(labels) == 5 + 3
    assert not any(set(label) & set("<>|`\\") for label in labels)
    assert re.search(r'Step1 -\.->\|"if a', text)


def test_names_in_mermaid_stay_apart():
    steps = tuple(
        Step(name, name, edges=(Edge(f"x{at}", name, "end"),))
        for at, name in enumerate(["a.b", "a_b", "END", "1"])
    )
    lines = to_mermaid(make_plan(Guide("g", "G", steps))).splitlines()
    names = [line.split("[")[0].split("(")[0].strip() for line in lines[1:7]]
    assert len(set(names)) == 6
    assert all(re.fullmatch(r"[A-Za-z]\w*|_\w+", name) for name in names)


def test_dot():
    text = to_dot(_nasty(), STATES)
    assert '"Step1" -> "end" [label="otherwise"];' in text
    assert '\\"quoted\\"' in text
    assert "\\\\ |x|" in text
    for line in text.splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0
    assert "style=dashed" in text


def test_ascii():
    plan = make_plan(parse_guide(
        "# T\n## Step 1 - A\n### Connections\n- if `a > 1` (many): Step 2\n- otherwise: end\n"
        "## Step 2 - B\n### Connections\n- end\n### Policy\n- gate: approve\n", name="g",
    ))  # fmt: skip
    assert to_ascii(plan, {"Step1": "succeeded", "edge_Step1_end": "disabled"}) == (
        "[ ] start\n"
        "     `--> Step1\n"
        "[+] Step1  A  (succeeded)\n"
        "     |- if a > 1 (many) --> Step2\n"
        "     `- otherwise --> end  (disabled)\n"
        "[ ] Step2  B  [asks for approval]\n"
        "     `--> end\n"
        "[ ] end\n"
    )


def test_edge_labels():
    assert edge_label(Edge("e", "a", "b", otherwise=True, condition="calm")) == "otherwise (calm)"
    assert edge_label(Edge("e", "a", "b")) == ""


_SVG = "{http://www.w3.org/2000/svg}"


class TestSvg:
    def test_it_is_one_well_formed_picture_with_all_titles(self):
        root = ElementTree.fromstring(to_svg(_nasty(), STATES))
        titles = [each.text for each in root.iter(f"{_SVG}title")]
        assert " ".join(NASTY.split()) in titles[0]
        assert "Step2: B" in titles
        paths = root.findall(f"{_SVG}path")
        assert len(paths) == 6
        assert "stroke-dasharray" in paths[1].attrib
        words = " ".join(each.text or "" for each in root.iter(f"{_SVG}text"))
        for part in ("otherwise", "failed", "skipped", "join all, approval"):
            assert part in words

    def test_control_characters_cannot_break_it(self):
        steps = (Step("Step1", "a\x00b\x1b]]>\ud800", edges=(Edge("e", "Step1", "end"),)),)
        svg = to_svg(make_plan(Guide("g", "\x07", steps)))
        ElementTree.fromstring(svg)
        svg.encode("utf-8")

    def test_it_fetches_nothing(self):
        assert not re.search(r"(?:href|src|@import|url\((?!#))", to_svg(_nasty()))


@st.composite
def _plans(draw):
    size = draw(st.integers(1, 14))
    steps = []
    for at in range(size):
        later = [*(f"S{n}" for n in range(at + 1, size)), "end"]
        targets = draw(st.lists(st.sampled_from(later), unique=True, min_size=1, max_size=4))
        edges = tuple(Edge(f"e{at}_{t}", f"S{at}", t, condition="c") for t in targets)
        steps.append(Step(f"S{at}", f"title {at}", edges=edges))
    return make_plan(Guide("g", "G", tuple(steps)))


@given(_plans())
@settings(max_examples=60, deadline=None)
def test_layouts_keep_nodes_apart_and_edges_downwards(plan):
    layout = lay_out(plan)
    centres = list(layout.centres.values())
    for at, (x, y) in enumerate(centres):
        assert BOX[0] / 2 - 0.01 <= x <= layout.width - BOX[0] / 2 + 0.01
        assert BOX[1] / 2 <= y <= layout.height
        for other_x, other_y in centres[at + 1 :]:
            assert abs(y - other_y) > BOX[1] or abs(x - other_x) >= BOX[0] + GAP[0] - 0.01
    for edge in plan.edges:
        path = layout.paths[edge.name]
        assert (path[0], path[-1]) == (layout.centres[edge.source], layout.centres[edge.target])
        assert all(a[1] < b[1] for a, b in itertools.pairwise(path))
    assert to_svg(plan) == to_svg(plan)


def test_a_plan_with_too_many_long_edges_is_still_drawn():
    size = 400
    steps = tuple(
        Step(f"S{n}", "t", edges=tuple(
            Edge(f"e{n}_{t}", f"S{n}", t) for t in {f"S{n + 1}" if n + 1 < size else "end", "end"}
        ))
        for n in range(size)
    )  # fmt: skip
    assert to_svg(make_plan(Guide("g", "G", steps))).count("<path") == 3 + 2 * size


def test_a_condition_that_begins_with_if_is_not_given_another():
    edge = Edge("edge_Step1_end", "Step1", "end", condition="if it is on")
    assert edge_label(edge) == "if it is on"
    assert edge_label(Edge("e", "Step1", "end", condition="it is on")) == "if it is on"
    assert edge_label(Edge("e", "Step1", "end")) == ""
