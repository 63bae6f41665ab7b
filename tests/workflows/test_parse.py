"""Reading guides in agentrt's format: what is read, and what each mistake is told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from agentrt.errors import GuideError
from agentrt.workflows.guide import QueryUse, Retry, StepPolicy
from agentrt.workflows.parse import load_guide, parse_guide

GUIDE = """\
<!-- a licence line -->
# Queue backlog
When messages pile up.

| queue | owner |
|---|---|
| mail | ann |

<!-- guide: queries=queue.toml; on_conclusion=drain -->

## Background
Written after the outage.

## Parameters
The incident gives these.

- `start_time` (timestamp): when it began
- `region` (string, default "eu (x), y"): where
- `limit` (integer, optional)

## Step 1 - Check queue depth
Look first.

### Instructions
Compare with {region}.

```text
## Step 9 - not a heading
<!-- not a comment -->
```

### Hints
Ask ann.

### Queries
- `queue_depth` with limit=5, region="{region}, all"
- `errors`

### Connections
- if `max(queue_depth.depth) > 5000` (a backlog): Step 2
- if the owner says: deployed,
  and confirms it: Step 3, Step 4
- otherwise: End

### Policy
- join: quorum 2
- timeout: 1.5m
- retries: 4, initial 250ms, factor 3, longest 1m
- idempotent: no
- gate: approve (default approve, after 10m)
- tokens: 4,000
- memory: 1.5g
- cpu: 0.5
- pids: 64
- network: host
- for each: `queues.name`

## Step 2: Drain
### Command
Runs in a sandbox.
```sh
echo one
echo two
```
<!-- Reaches A Final Conclusion: The backlog
explains it. -->

## Step 3 - Read
### Connections
1. proceed to Step 4.
### Policy
- reads: Step 1
- guide: other/nested.md

## Step 4 - Stop
<!-- reaches a final conclusion -->
"""


def _parse(text):
    return parse_guide(text, name="g", path="dir/g.md")


def _step(body, *, more="## Step 2 - B\n<!-- Reaches A Final Conclusion -->\n"):
    return _parse(f"# T\n## Step 1 - A\n{body}\n{more}").steps[0]


class TestWhole:
    guide = _parse(GUIDE)

    def test_head(self):
        guide = self.guide
        assert (guide.title, guide.name, guide.path) == ("Queue backlog", "g", "dir/g.md")
        assert (guide.queries_file, guide.on_conclusion) == ("queue.toml", "drain")
        assert guide.overview.startswith("When messages pile up.\n\n| queue | owner |")
        assert guide.overview.endswith("## Background\nWritten after the outage.")
        assert guide.text == GUIDE

    def test_parameters(self):
        start, region, limit = self.guide.parameters
        assert (start.type, start.required, start.description) == (
            "timestamp",
            True,
            "when it began",
        )
        assert (region.default, region.required) == ("eu (x), y", False)
        assert (limit.type, limit.required, limit.default) == ("integer", False, None)

    def test_instructions_keep_prose_code_and_unknown_sections_in_order(self):
        assert self.guide.steps[0].instructions == (
            "Look first.\n\nCompare with {region}.\n\n```text\n## Step 9 - not a heading\n"
            "<!-- not a comment -->\n```\n\n### Hints\nAsk ann."
        )

    def test_queries(self):
        assert self.guide.steps[0].queries == (
            QueryUse("queue_depth", {"limit": "5", "region": "{region}, all"}, 36),
            QueryUse("errors", {}, 37),
        )

    def test_connections(self):
        first, second, third, last = self.guide.steps[0].edges
        assert first.name == "edge_Step1_Step2"
        assert (first.predicate, first.condition) == ("max(queue_depth.depth) > 5000", "a backlog")
        assert second.condition == "the owner says: deployed, and confirms it"
        assert (second.predicate, second.target, third.target) == (None, "Step3", "Step4")
        assert third.condition == second.condition
        assert (last.target, last.otherwise, last.line) == ("end", True, 43)
        assert GUIDE.splitlines()[first.line - 1].startswith("- if `max")

    def test_policy(self):
        step = self.guide.steps[0]
        assert step.for_each == "queues.name"
        assert step.policy == StepPolicy(
            join="quorum",
            quorum=2,
            timeout=90.0,
            retry=Retry(5, 0.25, 3.0, 60.0),
            idempotent=False,
            gate="approve",
            gate_default="approve",
            gate_timeout=600.0,
            tokens=4000,
            memory=3 << 29,
            cpu=0.5,
            pids=64,
            network="host",
        )

    def test_command_and_terminator(self):
        step = self.guide.steps[1]
        assert step.command == "echo one\necho two"
        assert step.instructions == "Runs in a sandbox."
        assert step.conclusion == "The backlog explains it."
        assert [(edge.target, edge.unconditional) for edge in step.edges] == [("end", True)]

    def test_reads_and_nested_guide(self):
        step = self.guide.steps[2]
        assert (step.reads, step.guide) == (("Step1",), "other/nested.md")
        assert step.edges[0].unconditional

    def test_terminator_without_text_concludes_the_title(self):
        assert self.guide.steps[3].conclusion == "Stop"

    def test_carriage_returns_make_no_difference(self):
        again = _parse(GUIDE.replace("\n", "\r\n"))
        assert again.steps == self.guide.steps


class TestConnections:
    def test_a_terminator_beside_conditions_is_what_remains(self):
        step = _step("### Connections\n- if it is so: Step 2\n<!-- Reaches A Final Conclusion -->")
        assert [(e.target, e.otherwise) for e in step.edges] == [("Step2", False), ("end", True)]

    def test_a_terminator_beside_a_way_to_end_adds_nothing(self):
        step = _step(
            "### Connections\n- if so: end\n- otherwise: Step 2\n"
            "<!-- Reaches A Final Conclusion: x -->"
        )
        assert len(step.edges) == 2

    def test_without_connections_and_terminator_a_step_leads_nowhere(self):
        assert _step("Prose.").edges == ()

    def test_prose_among_connections_goes_to_the_instructions(self):
        assert (
            _step("### Connections\nMind the order.\n\n- Step 2").instructions == "Mind the order."
        )

    def test_backticks_inside_prose_are_no_predicate(self):
        edge = _step("### Connections\n- if the `drain` flag is `off`: Step 2").edges[0]
        assert (edge.predicate, edge.condition) == (None, "the `drain` flag is `off`")


class TestEntry:
    TEXT = "# T\n## Step 1 - A\n### Connections\n- end\n## Step 2 - B\n{}### Connections\n- end\n"

    def test_the_first_step_alone_needs_no_start(self):
        assert [s.id for s in _parse(self.TEXT.format("")).steps] == ["Step1", "Step2"]

    def test_entry_adds_a_start_that_leads_to_both(self):
        start = _parse(self.TEXT.format("### Policy\n- entry: yes\n")).steps[0]
        assert start.id == "start"
        assert [edge.name for edge in start.edges] == ["edge_start_Step1", "edge_start_Step2"]

    def test_start_may_be_written_out(self):
        text = self.TEXT.format("").replace("# T\n", "# T\n## Start\n- if hot: Step 2\n")
        assert [edge.condition for edge in _parse(text).steps[0].edges] == ["hot"]


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("### Policy\n- timeot: 3s", 4, "Did you mean `timeout`"),
        ("### Policy\n- timeout: soon", 4, "timeout: 30s"),
        ("### Policy\n- timeout: 0s", 4, "longer than nothing"),
        ("### Policy\n- timeout: 3s\n- timeout: 4s", 5, "given twice"),
        ("### Policy\n- join: most", 4, "quorum N"),
        ("### Policy\n- join: quorum 0", 4, "at least 1"),
        ("### Policy\n- retries: -1", 4, "0 to 1000"),
        ("### Policy\n- retries: 2, jitter 3", 4, "jitter"),
        ("### Policy\n- idempotent: maybe", 4, "neither yes nor no"),
        ("### Policy\n- gate: ask", 4, "approve"),
        ("### Policy\n- gate: approve (default maybe)", 4, "default maybe"),
        ("### Policy\n- memory: lots", 4, "512m"),
        ("### Policy\n- memory: 0", 4, "positive"),
        ("### Policy\n- cpu: -1", 4, "positive"),
        ("### Policy\n- cpu: inf", 4, "positive"),
        ("### Policy\n- network: lan", 4, "none nor host"),
        ("### Policy\n- for each: `import os`", 4, "cannot be read"),
        ("### Policy\n- guide: ../../etc/passwd", 4, "own folder"),
        ("### Policy\n- reads: Step 7", 2, "names Step7"),
        ("### Policy\n- reads: everything", 4, "list steps"),
        ("### Connections\n- Step 9", 4, "names Step9"),
        ("### Connections\n- see below", 4, "does not lead to a step"),
        ("### Connections\n- when hot: Step 2", 4, "no condition"),
        ("### Connections\n- if `depth >`: Step 2", 4, "cannot be read"),
        ("### Connections\n- if `os.system('x')`: Step 2", 4, "function"),
        ("### Connections\n- if a: Step 2\n- if b: Step 2", 5, "with `or`"),
        ("### Connections\n- otherwise: Step 2\n<!-- Reaches A Final Conclusion -->", 5, "to end"),
        ("### Conections\n- Step 2", 3, "### Connections"),
        ("### Queries\n- queue_depth", 4, "does not name a query"),
        ("### Queries\n- `q` with limit", 4, "name=value"),
        ("### Queries\n- `q` with a=1, a=2", 4, "twice"),
        ("### Command\nnothing", 4, "exactly one code block"),
        ("### Command\n```python\nx\n```", 4, "python"),
        ("```sh\necho", 3, "never closed"),
        ("<!-- never", 3, "never closed"),
        ("<!-- Reaches an end -->", 3, "terminator"),
        ("<!-- Reaches A Final Conclusion -->\n<!-- Reaches A Final Conclusion -->", 4, "second"),
        ("### Queries\n### Queries", 4, "second section"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_step_is_told_with_its_line(body, line, words):
    with pytest.raises(GuideError) as caught:
        _step(body)
    assert str(caught.value).startswith(f"dir/g.md:{line}: ")
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no title"),
        ("## Step 1 - A", "no title"),
        ("text\n# T\n## Step 1 - A", "above the title"),
        ("# T\n# U\n## Step 1 - A", "second title"),
        ("# T\nprose", "no steps"),
        ("# T\n## Step 1", "neither a step"),
        ("# T\n## Stpe 1 - A", "neither a step"),
        ("# T\n## Parametres\n- `a`\n## Step 1 - A", "neither a step"),
        ("# T\n## Step 1 - A\n## Step 1 - B", "twice, first in line 2"),
        ("# T\n<!-- guide: queris=a -->\n## Step 1 - A", "no setting"),
        ("# T\n<!-- guide: queries=a; queries=b -->\n## Step 1 - A", "set twice"),
        ("# T\n<!-- guide: on_conclusion=stop -->\n## Step 1 - A", "finish-join"),
        ("# T\n## Parameters\n- region\n## Step 1 - A", "declare a parameter"),
        ("# T\n## Parameters\n- `a b`\n## Step 1 - A", "declare a parameter"),
        ("# T\n## Parameters\n- `a` (strange)\n## Step 1 - A", "strange"),
        ("# T\n## Parameters\n- `a` where\n## Step 1 - A", "colon"),
        ("# T\n## Parameters\n- `a`\n- `a`\n## Step 1 - A", "declared twice"),
        ('# T\n## Parameters\n- `a` (default "x)\n## Step 1 - A', "`a`"),
        ("# T\n## Parameters\n## Parameters\n## Step 1 - A", "second section"),
        ("# T\n## Start\n- Step 9\n## Step 1 - A", "names Step9"),
        ("# T\n## Start\n- Step 1\n## Step 1 - A\n### Policy\n- entry: yes", "do not go together"),
    ],
)
def test_a_mistake_of_the_guide_is_told(text, words):
    with pytest.raises(GuideError, match=r"dir/g.md:\d+: ") as caught:
        _parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "### Connections\n- if " + "`" * 2000 + ": Step 1",
        "### Connections\n- if `" + "` " * 1000 + "(: Step 1",
        "### Queries\n- `q` with a=" + '"' * 2000 + "\\",
        "### Policy\n- retries: 1" + "," * 2000 + '"',
        "## Step 2" + " " * 20000 + "x",
        "## " + "x" * 20000 + " " * 20000 + "y",
        "### Connections\n- if it is\n" + "so and\n" * 20000 + "so: Step 2",
        "### Policy\n- timeout: " + "1" * 2000,
    ],
)
def test_long_nonsense_is_read_or_refused_in_no_time(body):
    with contextlib.suppress(GuideError):
        _step(body)


class TestFiles:
    def test_a_guide_is_named_after_its_file(self, tmp_path):
        file = tmp_path / "backlog.md"
        file.write_text("# T\n## Step 1 - A\n", encoding="utf-8")
        guide = load_guide(file)
        assert (guide.name, guide.path) == ("backlog", str(file))

    def test_what_cannot_be_read_is_told(self, tmp_path):
        with pytest.raises(GuideError, match="cannot be read"):
            load_guide(tmp_path / "none.md")
        (tmp_path / "bad.md").write_bytes(b"# \xff")
        with pytest.raises(GuideError, match="UTF-8"):
            load_guide(tmp_path / "bad.md")
        (tmp_path / "big.md").write_bytes(b"a" * (5 << 20))
        with pytest.raises(GuideError, match="larger"):
            load_guide(tmp_path / "big.md")


def test_the_guide_of_the_documentation_is_one():
    page = Path(__file__).parents[2] / "docs" / "guide-format.md"
    text = page.read_text(encoding="utf-8").partition("````markdown\n")[2].partition("````")[0]
    guide = parse_guide(text, name="queue", path="queue.md")
    assert [step.id for step in guide.steps] == ["Step1", "Step2", "Step3"]
    with pytest.raises(GuideError) as caught:
        parse_guide(text.replace("- timeout", "- timeot"), name="queue", path="queue.md")
    assert str(caught.value) in page.read_text(encoding="utf-8")
