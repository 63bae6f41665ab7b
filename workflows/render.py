"""Plans as pictures and text: Mermaid, Graphviz DOT, SVG, plain ASCII. All are deterministic.

``states`` maps steps to their status and, where wanted, edges by name to enabled, disabled or
pending; what is not in it is drawn as not yet decided.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentrt.workflows.guide import END, START, Edge
from agentrt.workflows.plan import Plan, PlanNode
from agentrt.workflows.render_guide import connection_lines, render_guide, same_guide
from agentrt.workflows.render_svg import COLOURS, to_svg

__all__ = [
    "connection_lines",
    "edge_label",
    "render_guide",
    "same_guide",
    "to_ascii",
    "to_dot",
    "to_mermaid",
    "to_svg",
]

_MARKS = {
    "succeeded": "[+]",
    "failed": "[!]",
    "timed_out": "[T]",
    "running": "[>]",
    "waiting": "[?]",
    "skipped": "[-]",
    "cancelled": "[x]",
}


def edge_label(edge: Edge) -> str:
    """Return what decides an edge, in the words of the guide; empty for an unconditional one."""
    if edge.otherwise:
        return f"otherwise ({edge.condition})" if edge.condition else "otherwise"
    if edge.predicate:
        return f"if {edge.predicate}" + (f" ({edge.condition})" if edge.condition else "")
    # StepFly's conditions are kept as they stand, and most of them begin with the word.
    begun = edge.condition.lower().startswith("if ")
    return edge.condition if begun or not edge.condition else f"if {edge.condition}"


def to_mermaid(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """Return a Mermaid flowchart."""
    known = states or {}
    names = _plain_names(plan)
    lines = ["flowchart TD"]
    for node in plan.nodes.values():
        left, right = ("([", "])") if node.id in (START, END) else ("[", "]")
        lines.append(f'    {names[node.id]}{left}"{_mermaid(_title(node))}"{right}')
    for edge in plan.edges:
        label = f'|"{_mermaid(edge_label(edge))}"|' if edge_label(edge) else ""
        arrow = "-.->" if known.get(edge.name) == "disabled" else "-->"
        lines.append(f"    {names[edge.source]} {arrow}{label} {names[edge.target]}")
    for state in sorted({known[node] for node in plan.nodes if known.get(node) in COLOURS}):
        fill, stroke, _ = COLOURS[state]
        members = ",".join(names[node] for node in plan.nodes if known.get(node) == state)
        lines.append(f"    classDef {state} fill:{fill},stroke:{stroke},color:#212529")
        lines.append(f"    class {members} {state}")
    return "\n".join(lines) + "\n"


def _plain_names(plan: Plan) -> dict[str, str]:
    """Names of letters, digits and underlines; ``end`` alone is a word of Mermaid's."""
    found: dict[str, str] = {}
    for node in plan.nodes.values():
        plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in node.id)
        taken = plain in found.values() or plain.lower() == END or not plain[:1].isalpha()
        found[node.id] = f"n{node.index}_{plain}" if taken else plain
    return found


def _title(node: PlanNode) -> str:
    return node.title if node.id in (START, END) else f"{node.id}: {node.title}"


def _mermaid(text: str) -> str:
    special = '"#`<>&|{}[]()\\;'
    return "".join(f"#{ord(char)};" if char in special else char for char in " ".join(text.split()))


def to_dot(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """Return a digraph in Graphviz' DOT language."""
    known = states or {}
    lines = ["digraph guide {", "    rankdir=TB;", '    node [shape=box, style="rounded,filled"];']
    for node in plan.nodes.values():
        fill, stroke, _ = COLOURS.get(known.get(node.id, ""), COLOURS["pending"])
        shape = ", shape=oval" if node.id in (START, END) else ""
        lines.append(
            f"    {_dot(node.id)} [label={_dot(_title(node))}, "
            f'fillcolor="{fill}", color="{stroke}"{shape}];'
        )
    for edge in plan.edges:
        words = [f"label={_dot(edge_label(edge))}"] if edge_label(edge) else []
        words += ["style=dashed"] if known.get(edge.name) == "disabled" else []
        attributes = f" [{', '.join(words)}]" if words else ""
        lines.append(f"    {_dot(edge.source)} -> {_dot(edge.target)}{attributes};")
    return "\n".join([*lines, "}"]) + "\n"


def _dot(text: str) -> str:
    plain = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"'


def to_ascii(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """Return the plan as lines of text, step by step in topological order, for a terminal.

    Only the drawing is limited to ASCII; titles and conditions are as the guide has them.
    """
    known = states or {}
    width = max(len(node) for node in plan.nodes)
    lines: list[str] = []
    for name in plan.order:
        node = plan.nodes[name]
        mark = _MARKS.get(known.get(name, ""), "[ ]")
        title = "" if name in (START, END) else f"  {' '.join(node.title.split())}"
        state = f"  ({known[name]})" if name in known else ""
        lines.append(f"{mark} {name.ljust(width)}{title}{_notes(node)}{state}".rstrip())
        for edge in node.outgoing:
            corner = "`-" if edge is node.outgoing[-1] else "|-"
            label = " ".join(edge_label(edge).split())
            taken = f"  ({known[edge.name]})" if edge.name in known else ""
            lines.append(f"     {corner}{f' {label} -' if label else ''}-> {edge.target}{taken}")
    return "\n".join(lines) + "\n"


def _notes(node: PlanNode) -> str:
    notes = []
    if len(node.incoming) > 1 and node.id != END:
        quorum = f" {node.policy.quorum}" if node.policy.join == "quorum" else ""
        notes.append(f"join {node.policy.join}{quorum} of {len(node.incoming)}")
    if node.policy.gate == "approve":
        notes.append("asks for approval")
    if node.step and node.step.for_each:
        notes.append(f"for each {node.step.for_each}")
    if node.step and node.step.guide:
        notes.append(f"runs {node.step.guide}")
    return f"  [{'; '.join(notes)}]" if notes else ""
