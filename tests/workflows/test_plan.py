"""Plans: the graph, its checks, order, width, critical path, estimate and fingerprint."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import GuideError
from agentrt.workflows.guide import Edge, Guide, QueryUse, Step, StepPolicy
from agentrt.workflows.parse import load_guide, parse_guide
from agentrt.workflows.plan import estimate, make_plan
from agentrt.workflows.plan_width import largest_antichain


def guide_of(ways, **steps):
    """A guide with the given ``source: [targets]``, in that order."""
    made = [
        Step(
            name,
            f"title {name}",
            edges=tuple(Edge(f"edge_{name}_{t}", name, t, line=at) for t in targets),
            line=at,
        )
        for at, (name, targets) in enumerate(ways.items(), 1)
    ]
    made = [replace(step, **steps.get(step.id, {})) for step in made]
    return Guide("g", "G", tuple(made))


DIAMOND = {"A": ["C", "B"], "B": ["D"], "C": ["D"], "D": ["end"]}


class TestGraph:
    plan = make_plan(guide_of(DIAMOND))

    def test_nodes_keep_the_guides_order_and_order_is_topological(self):
        assert list(self.plan.nodes) == ["start", "A", "B", "C", "D", "end"]
        assert self.plan.order == ("start", "A", "B", "C", "D", "end")
        assert self.plan.steps == ("A", "B", "C", "D")

    def test_edges(self):
        assert [edge.name for edge in self.plan.edges][:3] == [
            "edge_start_A",
            "edge_A_C",
            "edge_A_B",
        ]
        assert [edge.source for edge in self.plan.incoming("D")] == ["B", "C"]
        assert [edge.target for edge in self.plan.outgoing("A")] == ["C", "B"]
        with pytest.raises(KeyError):
            self.plan.incoming("X")

    def test_levels_and_upstream(self):
        assert self.plan.levels == (("start",), ("A",), ("B", "C"), ("D",), ("end",))
        assert self.plan.upstream("D") == ("A", "B", "C")
        assert self.plan.comes_before("A", "end")
        assert not self.plan.comes_before("B", "C")

    def test_order_follows_edges_that_point_backwards_in_the_file(self):
        plan = make_plan(guide_of({"A": ["C"], "B": ["end"], "C": ["B"]}))
        assert plan.order == ("start", "A", "C", "B", "end")

    def test_a_declared_start_decides_where_the_run_begins(self):
        plan = make_plan(guide_of({"start": ["B", "A"], "A": ["end"], "B": ["end"]}))
        assert [edge.target for edge in plan.outgoing("start")] == ["B", "A"]
        assert plan.width() == 2

    def test_unreachable_steps_are_named(self):
        plan = make_plan(guide_of({"A": ["end"], "B": ["C"], "C": ["end"]}))
        assert plan.unreachable == ("B", "C")

    def test_policy_of_start_and_end_is_the_default(self):
        assert self.plan.nodes["end"].policy == StepPolicy()


@pytest.mark.parametrize(
    ("ways", "words"),
    [
        ({"A": ["B"], "B": ["C"], "C": ["B", "end"]}, "cycle: B -> C -> B"),
        ({"A": ["A"]}, "cycle: A -> A"),
        ({"A": ["B", "B"], "B": ["end"]}, "edge_A_B is there twice"),
        ({"A": ["X"]}, "names X"),
        ({"A": ["start"]}, "into start"),
        ({}, "no steps"),
    ],
)
def test_what_is_no_graph_is_refused(ways, words):
    with pytest.raises(GuideError) as caught:
        make_plan(guide_of(ways))
    assert words in str(caught.value)
    assert caught.value.remedy


def test_a_step_twice_is_refused():
    guide = guide_of({"A": ["end"]})
    with pytest.raises(GuideError, match="A is there twice"):
        make_plan(replace(guide, steps=guide.steps * 2))


def test_reading_what_does_not_come_before_is_refused():
    make_plan(guide_of(DIAMOND, D={"reads": ("A",)}))
    with pytest.raises(GuideError, match="B reads C"):
        make_plan(guide_of(DIAMOND, B={"reads": ("C",)}))


class TestCriticalPath:
    def test_it_is_the_slowest_way(self):
        path, seconds = make_plan(guide_of(DIAMOND)).critical_path({"A": 1, "B": 2, "C": 5, "D": 1})
        assert (path, seconds) == (("A", "C", "D"), 7)

    def test_a_step_without_a_time_is_told(self):
        with pytest.raises(GuideError, match="no time for D"):
            make_plan(guide_of(DIAMOND)).critical_path({"A": 1, "B": 2, "C": 5})

    def test_unreachable_steps_do_not_count(self):
        plan = make_plan(guide_of({"A": ["end"], "B": ["end"]}))
        assert plan.critical_path({"A": 1.0, "B": 9.0}) == (("A",), 1.0)


@st.composite
def _graphs(draw, most=9):
    size = draw(st.integers(1, most))
    names = [f"S{i}" for i in range(size)]
    ways = {}
    for i, name in enumerate(names):
        later = names[i + 1 :]
        ways[name] = (
            draw(st.lists(st.sampled_from(later), unique=True, max_size=4)) if later else []
        )
        ways[name] = ways[name] or ["end"]
    order = draw(st.permutations(names[1:]))
    return {name: ways[name] for name in [names[0], *order]}


def _paths(ways, node):
    if node == "end":
        return [()]
    return [(node, *rest) for target in ways[node] for rest in _paths(ways, target)]


@given(_graphs(), st.lists(st.integers(0, 9), min_size=9, max_size=9))
def test_plans_agree_with_counting_all_ways(ways, times):
    plan = make_plan(guide_of(ways))
    first = next(iter(ways))
    seconds = {name: times[int(name[1:])] for name in ways}
    paths = _paths(ways, first)
    longest = max(sum(seconds[step] for step in path) for path in paths)
    path, found = plan.critical_path(seconds)
    assert found == longest == sum(seconds[step] for step in path)
    assert set(plan.unreachable) == set(ways) - {step for path in paths for step in path}
    place = {node: at for at, node in enumerate(plan.order)}
    assert all(place[edge.source] < place[edge.target] for edge in plan.edges)
    assert plan.width() == _width_by_trying(plan)


def _width_by_trying(plan):
    steps = plan.steps
    for size in range(len(steps), 0, -1):
        for group in itertools.combinations(steps, size):
            pairs = itertools.permutations(group, 2)
            if not any(plan.comes_before(a, b) for a, b in pairs):
                return size
    return 0


@given(st.integers(2, 60), st.integers(0, 2**32))
@settings(max_examples=30)
def test_width_of_layers_is_their_size(size, seed):
    # Two full layers of different sizes: the larger one is the widest set.
    other = 1 + seed % size
    after = [sum(1 << (size + j) for j in range(other))] * size + [0] * other
    assert largest_antichain(after) == max(size, other)


def test_large_plans_stay_quick_and_right():
    # 40 chains of 50 steps side by side between one step and another.
    ways = {"A": [f"c{c}_0" for c in range(40)]}
    for c, i in itertools.product(range(40), range(50)):
        ways[f"c{c}_{i}"] = [f"c{c}_{i + 1}"] if i < 49 else ["Z"]
    ways["Z"] = ["end"]
    plan = make_plan(guide_of(ways))
    assert plan.width() == 40
    assert plan.critical_path(dict.fromkeys(plan.steps, 1.0))[1] == 52.0


def test_estimate_sums_the_widest_demands():
    guide = guide_of(
        DIAMOND,
        A={"instructions": "x" * 39, "policy": StepPolicy(memory=100, cpu=1.0)},
        B={"policy": StepPolicy(memory=300, cpu=2.0)},
        C={"policy": StepPolicy(memory=400)},
    )
    found = estimate(make_plan(replace(guide, text="y" * 41)))
    assert (found.memory, found.cpu, found.width) == (700, 2.0, 2)
    assert found.undeclared == ("D",)
    assert found.shared == 11
    assert found.tokens["A"] > found.tokens["B"]
    assert found.total == found.shared + sum(found.tokens.values())


GUIDE = """# T
<!-- guide: queries=q.toml -->
## Step 1 - A
Look.
### Queries
- `depth`
### Connections
- end
### Policy
- guide: inner.md
"""


class TestFingerprint:
    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "g.md").write_text(GUIDE, encoding="utf-8")
        (tmp_path / "q.toml").write_text("[query.depth]", encoding="utf-8")
        (tmp_path / "inner.md").write_text("# I\n## Step 1 - A\n### Connections\n- end\n")
        return tmp_path / "g.md"

    def _of(self, path):
        return make_plan(load_guide(path)).fingerprint

    def test_the_same_guide_has_the_same(self, path, tmp_path):
        before = self._of(path)
        path.write_text(GUIDE.replace("\n", "  \r\n") + "\n\n", encoding="utf-8", newline="")
        assert self._of(path) == before
        assert len(before) == 64

    @pytest.mark.parametrize("name", ["g.md", "q.toml", "inner.md"])
    def test_any_change_of_a_file_changes_it(self, path, name):
        before = self._of(path)
        file = path.parent / name
        more = "\n# more" if name == "q.toml" else "\n## Notes\nMore.\n"
        file.write_text(file.read_text(encoding="utf-8") + more, encoding="utf-8")
        assert self._of(path) != before

    def test_the_place_of_the_files_does_not_matter(self, path, tmp_path):
        before = self._of(path)
        moved = tmp_path / "moved"
        moved.mkdir()
        for file in ("g.md", "q.toml", "inner.md"):
            (tmp_path / file).rename(moved / file)
        assert self._of(moved / "g.md") == before

    def test_a_missing_file_is_told(self, path):
        (path.parent / "q.toml").unlink()
        with pytest.raises(GuideError, match=r"q\.toml, which cannot be read"):
            self._of(path)

    def test_a_guide_that_nests_itself_is_told(self, path):
        inner = "# I\n## Step 1 - A\n### Policy\n- guide: g.md\n"
        (path.parent / "inner.md").write_text(inner)
        with pytest.raises(GuideError, match="nests itself"):
            self._of(path)

    def test_a_folder_of_queries_counts_as_its_files(self, tmp_path):
        folder = tmp_path / "plugins"
        folder.mkdir()
        (folder / "one.py").write_text("a")
        guide = replace(guide_of(DIAMOND), path=str(tmp_path / "g.md"), queries_file="plugins")
        before = make_plan(guide).fingerprint
        (folder / "one.py").write_text("b")
        assert make_plan(guide).fingerprint != before

    def test_guides_without_text_differ_by_what_they_are(self):
        one = make_plan(guide_of(DIAMOND)).fingerprint
        assert make_plan(guide_of(DIAMOND)).fingerprint == one
        other = guide_of(DIAMOND, B={"queries": (QueryUse("q", {"limit": "1"}),)})
        assert make_plan(other).fingerprint != one

    def test_lines_do_not_count(self):
        text = "# T\n## Step 1 - A\n### Connections\n- end\n"
        one, two = parse_guide(text, name="g"), parse_guide(f"\n{text}", name="g")
        assert make_plan(replace(two, text=one.text)).fingerprint == make_plan(one).fingerprint
