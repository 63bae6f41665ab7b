"""Rules on StepFly's PlanDAG files, and the links that they give to a guide's steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agentrt.errors import GuideError
from agentrt.workflows.lint_model import Document, Finding, Link, LintStep, found
from agentrt.workflows.lint_words import vague_words
from agentrt.workflows.stepfly_dag import DagNode, PlanDag, condition_of, parse_plan_dag
from agentrt.workflows.stepfly_markdown import parse_markdown, prose_edges

__all__ = ["attach_dag", "dag_rules"]


def attach_dag(document: Document, dag: PlanDag) -> None:
    """Give the steps the links of a PlanDAG; an edge in one list only leads nowhere."""
    targets = {edge.name: node.name for node in dag.nodes for edge in node.inputs}
    for node in dag.nodes:
        links = [
            _link(edge.condition, targets.get(edge.name, ""), _line_of(document, node.name))
            for edge in node.outputs
        ]
        step = document.step(node.name)
        if step is not None:
            step.links = links
        elif node.name == "start":
            document.start = links


def attach_prose(document: Document, path: str) -> Finding | None:
    """Give the steps the links that their sentences name; a finding if some name none."""
    try:
        markdown = parse_markdown(document.text, name=Path(path).name, path=path)
        edges = prose_edges(markdown.steps, path)
    except GuideError as error:
        line = re.search(r":(\d+): ", error.message)
        at = int(line[1]) if line else 1
        return found("unreadable-guide", at, error.message, error.remedy)
    for step in document.steps:
        step.links = [
            _link("otherwise" if edge.otherwise else edge.condition, edge.target, edge.line)
            for edge in edges
            if edge.source == step.id
        ]
    return None


def dag_rules(document: Document, dag: PlanDag, path: str) -> Iterator[Finding]:
    """Check a PlanDAG: names, both ends, conditions; ``path`` is how findings name the file."""
    for finding in _rules(document, dag):
        yield replace(finding, path=path)


def read_dag(path: Path, shown: str) -> PlanDag | Finding:
    """Read a PlanDAG, or say why it cannot be read."""
    try:
        return parse_plan_dag(path.read_text(encoding="utf-8"), shown)
    except GuideError as error:
        line = re.search(r":(\d+): ", error.message)
        at = int(line[1]) if line else 1
        return found("unreadable-guide", at, error.message, error.remedy, path=shown)
    except (OSError, UnicodeDecodeError) as error:
        return found("unreadable-guide", 1, f"{error}.", "Check the file.", path=shown)


def _rules(document: Document, dag: PlanDag) -> Iterator[Finding]:
    yield from _ends(dag)
    yield from _names(dag)
    yield from _conditions(dag)
    for node in dag.nodes:
        yield from _node(document, node)


def _ends(dag: PlanDag) -> Iterator[Finding]:
    mentions: dict[str, tuple[list[int], list[int]]] = {}
    for _, edge, is_output in dag.occurrences():
        mentions.setdefault(edge.name, ([], []))[0 if is_output else 1].append(edge.line)
    for name, (outputs, inputs) in mentions.items():
        if len(outputs) != 1 or len(inputs) != 1:
            line = (outputs[1:] or inputs[1:] or outputs or inputs)[0]
            yield found(
                "edge-ends",
                line,
                f"{name} is in {len(outputs)} output lists and {len(inputs)} input lists.",
                "Name an edge in one output list and in one input list.",
            )


def _names(dag: PlanDag) -> Iterator[Finding]:
    targets = {edge.name: node.name for node in dag.nodes for edge in node.inputs}
    for node in dag.nodes:
        for edge in node.outputs:
            target = targets.get(edge.name)
            expected = f"edge_{node.name}_{target}"
            if target is not None and edge.name.lower() != expected.lower():
                yield found(
                    "edge-name",
                    edge.line,
                    f"{edge.name} leads from {node.name} to {target}.",
                    f"Call it {expected}, in both lists.",
                )


def _conditions(dag: PlanDag) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for _, edge, is_output in dag.occurrences():
        before = first.setdefault(edge.name, edge.condition)
        if is_output and before != edge.condition:
            yield found(
                "lost-condition",
                edge.line,
                f"The condition of {edge.name} is {before!r}, from where it is named first.",
                "List the node that it comes from before the one it leads to.",
            )


def _node(document: Document, node: DagNode) -> Iterator[Finding]:
    if node.name == "end":
        return
    if node.name != "start" and document.step(node.name) is None:
        yield found(
            "missing-step",
            node.line,
            f"{node.name} has no section in the guide.",
            "Write the section, or remove the node.",
        )
    if node.name != "start" and not node.inputs:
        message = f"No edge leads to {node.name}."
        yield found("unreachable-step", node.line, message, "Add an input edge.")
    if not node.outputs:
        yield found("dead-end", node.line, f"No edge leads on from {node.name}.", "Add one to end.")
    for edge in node.outputs if node.name != "start" else ():
        if words := vague_words(condition_of(edge.condition)[0]):
            yield found(
                "unquantified-condition",
                edge.line,
                f"{words!r} has no number or value to decide by.",
                "Say how much.",
            )


def terminator_rules(document: Document) -> Iterator[Finding]:
    """Check that the phrases which conclude and the edges to end go together."""
    for step in document.steps:
        ends = "end" in step.targets()
        if step.links and ends and not step.marker:
            yield found(
                "unmarked-termination",
                step.line,
                f"{step.id} leads to end and has no terminator phrase.",
                "Add **This is a potential resolution.** where it concludes.",
            )
        elif step.marker and step.links and not ends:
            yield found(
                "implicit-end",
                step.marker,
                f"{step.id} concludes and no edge leads to end.",
                "Add an edge to end.",
            )


def _link(condition: str, target: str, line: int) -> Link:
    english, otherwise = condition_of(condition)
    targets = (target,) if target else ()
    if otherwise:
        return Link(line, "otherwise", targets)
    return Link(line, "if" if english else "always", targets, english)


def _line_of(document: Document, name: str) -> int:
    step: LintStep | None = document.step(name)
    return step.line if step is not None else 1
