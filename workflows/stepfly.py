"""StepFly's guides, plans and plugins as ours, and our plans as StepFly's. Runs none of their code.

A folder is laid out as StepFly lays it out::

    TSGs/<Guide>.md   TSGs/PlanDAGs/<Guide>_plan_dag.json   plugins/<Guide>/plugin_N.py
    plugins/<Guide>/*.json (extraction form)   incidents/<id>.txt   config/incident_tsg_map.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge, Guide, QueryUse, Step
from agentrt.workflows.queries_model import Query
from agentrt.workflows.stepfly_bind import bind_query, query_toml, render_compat
from agentrt.workflows.stepfly_dag import (
    DagEdge,
    DagNode,
    PlanDag,
    dag_to_json,
    parse_plan_dag,
    resolve_edges,
)
from agentrt.workflows.stepfly_incident import (
    Incident,
    Redact,
    load_incident,
    load_incident_map,
    parse_incident,
    read_text,
    redact_urls,
)
from agentrt.workflows.stepfly_markdown import (
    MarkdownGuide,
    MarkdownStep,
    base_name,
    compact_text,
    parse_markdown,
    plugin_blocks,
    prose_edges,
    terminators,
)
from agentrt.workflows.stepfly_plugin import (
    StepFlyQuery,
    parse_extracted_plugins,
    parse_plugin_class,
)

__all__ = [
    "Incident",
    "PlanDag",
    "StepFlyFolder",
    "StepFlyQuery",
    "bind_query",
    "bound_queries",
    "dump_plan_dag",
    "find_folder",
    "load_incident",
    "load_incident_map",
    "load_plugin_blocks",
    "load_stepfly",
    "load_stepfly_queries",
    "parse_extracted_plugins",
    "parse_incident",
    "parse_plan_dag",
    "parse_plugin_class",
    "queries_to_toml",
    "redact_urls",
    "render_compat",
]

_LAYOUT = "Give a guide's .md file, or a folder with TSGs/<Guide>.md."


class PlanLike(Protocol):
    """What of a plan is written to a PlanDAG file."""

    @property
    def guide(self) -> Guide:
        """The guide that was planned."""

    @property
    def edges(self) -> Sequence[Edge]:
        """All edges, those from start and to end included."""


@dataclass(frozen=True, slots=True)
class StepFlyFolder:
    """Where a guide and its companions are. ``plan`` need not exist."""

    guide: Path
    root: Path
    plan: Path

    def plugins(self, plugin_set: str) -> Path:
        """The folder of a plugin set."""
        return self.root / "plugins" / plugin_set

    def incident(self, incident_id: str, *, redact: Redact = redact_urls) -> Incident:
        """Read an incident of this folder.

        Raises:
            GuideError: the id is not a plain name, or there is no such incident.
        """
        if Path(incident_id).name != incident_id or incident_id in ("", ".", ".."):
            raise GuideError(
                f"{incident_id!r} is not an incident's id.", remedy="Give an id, not a path."
            )
        return load_incident(self.root / "incidents" / f"{incident_id}.txt", redact=redact)


def find_folder(path: Path | str, *, incident: str | None = None) -> StepFlyFolder:
    """Find a guide and its companions from its file, or from the folder that holds all.

    With ``incident`` a folder's mapping chooses among several guides.

    Raises:
        GuideError: there is no guide, or there are several and nothing says which.
    """
    place = Path(path)
    guide = place if place.is_file() else _guide_in(place, incident)
    home = guide.parent
    root = home.parent if home.name == "TSGs" else home
    plan = home / "PlanDAGs" / f"{base_name(guide.name)}_plan_dag.json"
    if not plan.is_file() and (root / "PlanDAGs" / plan.name).is_file():
        plan = root / "PlanDAGs" / plan.name
    return StepFlyFolder(guide, root, plan)


def load_stepfly(
    path: Path | str,
    *,
    incident: str | None = None,
    mode: Literal["compact", "full"] = "compact",
) -> Guide:
    """Read a guide in StepFly's layout, from its file or its folder.

    Edges come from the PlanDAG file where there is one, else from the guide's own sentences. In
    ``compact`` mode a step's instructions name its queries instead of showing them.

    Raises:
        GuideError: a file is missing or malformed, or guide and PlanDAG do not fit together.
    """
    folder = find_folder(path, incident=incident)
    text = read_text(folder.guide)
    markdown = parse_markdown(text, name=folder.guide.name, path=str(folder.guide))
    if folder.plan.is_file():
        dag = parse_plan_dag(read_text(folder.plan), str(folder.plan))
        steps = _planned(markdown, dag, mode)
    else:
        steps = _from_prose(markdown, str(folder.guide), mode)
    return Guide(
        name=base_name(folder.guide.name),
        title=markdown.title,
        steps=steps,
        parameters=markdown.parameters,
        overview=markdown.overview,
        text=text,
        path=str(folder.guide),
        source_format="stepfly",
    )


def load_stepfly_queries(
    path: Path | str, *, incident: str | None = None
) -> Mapping[str, StepFlyQuery]:
    """Read the plugins of a guide's plugin set, both forms, by name (``plugin_1``).

    Raises:
        GuideError: a plugin is malformed, there twice, or named in the guide and not there.
    """
    folder = find_folder(path, incident=incident)
    text = read_text(folder.guide)
    markdown = parse_markdown(text, name=folder.guide.name, path=str(folder.guide))
    plugins = folder.plugins(markdown.plugin_set)
    found: dict[str, StepFlyQuery] = {}
    for query in _plugins_in(plugins):
        if query.name in found:
            raise GuideError(
                f"{query.path}: {query.name} is also in {found[query.name].path}.",
                remedy="Keep one of the two.",
            )
        found[query.name] = query
    for step in markdown.steps:
        for number, line in step.plugins:
            if f"plugin_{number}" not in found:
                raise GuideError(
                    f"{folder.guide}:{line}: plugin_{number} is not in {plugins}.",
                    remedy=f"Add {plugins}/plugin_{number}.py.",
                )
    return found


def queries_to_toml(
    queries: Mapping[str, StepFlyQuery], source: Mapping[str, str], *, name: str = "main"
) -> str:
    """Write the queries as a template file with one source, given as its settings (texts).

    Raises:
        GuideError: a template has a field that cannot be bound.
    """
    settings = [f'{key} = "{value}"' for key, value in source.items()]
    tables = [query_toml(bind_query(query, name)) for query in queries.values()]
    return "\n".join([f"[source.{name}]", *settings, "", *tables])


def dump_plan_dag(plan: PlanLike) -> str:
    """Write a plan as a PlanDAG file; reading it again gives the same nodes and edges."""
    titles = {START: "Begin the run", **{step.id: step.title for step in plan.guide.steps}}
    titles.setdefault(END, "Conclude the run")
    order = [START, *(name for name in titles if name not in (START, END)), END]
    nodes = tuple(
        DagNode(
            name,
            titles[name],
            tuple(DagEdge(edge.name) for edge in plan.edges if edge.target == name),
            tuple(DagEdge(edge.name, _shown(edge)) for edge in plan.edges if edge.source == name),
        )
        for name in order
    )
    return dag_to_json(PlanDag(nodes))


def bound_queries(queries: Mapping[str, StepFlyQuery], source: str = "main") -> dict[str, Query]:
    """Return each query as a template with bound parameters.

    Raises:
        GuideError: a template has a field that cannot be bound.
    """
    return {name: bind_query(query, source) for name, query in queries.items()}


def _shown(edge: Edge) -> str:
    if edge.otherwise:
        return "otherwise"
    return edge.condition or edge.predicate or "none"


def _guide_in(folder: Path, incident: str | None) -> Path:
    home = folder / "TSGs" if (folder / "TSGs").is_dir() else folder
    if incident is not None:
        mapping = load_incident_map(folder / "config" / "incident_tsg_map.json")
        if incident not in mapping:
            raise GuideError(
                f"{folder}: no guide is mapped to incident {incident!r}.",
                remedy="Add it to config/incident_tsg_map.json.",
            )
        return home / mapping[incident]
    found = sorted(home.glob("*.md")) if home.is_dir() else []
    if len(found) != 1:
        raise GuideError(f"{folder}: {len(found)} guides were found.", remedy=_LAYOUT)
    return found[0]


def _plugins_in(folder: Path) -> list[StepFlyQuery]:
    found = [
        parse_plugin_class(read_text(path), str(path))
        for path in sorted(folder.glob("plugin_*.py"))
    ]
    for path in sorted(folder.glob("*.json")):
        found += parse_extracted_plugins(read_text(path), str(path))
    return found


def _planned(markdown: MarkdownGuide, dag: PlanDag, mode: str) -> tuple[Step, ...]:
    """The PlanDAG's nodes in file order, with the texts of the guide's sections."""
    edges = resolve_edges(dag)
    texts = {step.id: step for step in markdown.steps}
    if unknown := [
        node for node in dag.nodes if node.name not in texts and node.name not in (START, END)
    ]:
        raise GuideError(
            f"{dag.path}:{unknown[0].line}: the guide has no section for {unknown[0].name}.",
            remedy="Add the section, or remove the node.",
        )
    steps = []
    for node in dag.nodes:
        if node.name == END:
            continue
        own = tuple(edge for edge in edges if edge.source == node.name)
        made = _step(texts[node.name], own, mode) if node.name in texts else _start(own)
        steps.append(replace(made, title=node.description.strip() or made.title))
    return tuple(sorted(steps, key=lambda step: step.id != START))


def _from_prose(markdown: MarkdownGuide, path: str, mode: str) -> tuple[Step, ...]:
    edges = prose_edges(markdown.steps, path)
    return tuple(
        _step(step, tuple(edge for edge in edges if edge.source == step.id), mode)
        for step in markdown.steps
    )


def _start(edges: tuple[Edge, ...]) -> Step:
    # StepFly enables start's edges whatever their conditions say.
    always = tuple(replace(edge, condition="", otherwise=False) for edge in edges)
    return Step(START, "Begin the run", edges=always, line=1)


def _step(step: MarkdownStep, edges: tuple[Edge, ...], mode: str) -> Step:
    ends = any(edge.target == END for edge in edges)
    return Step(
        id=step.id,
        title=step.title,
        instructions=step.body if mode == "full" else compact_text(step.body),
        queries=tuple(QueryUse(f"plugin_{number}", line=line) for number, line in step.plugins),
        edges=edges,
        conclusion=_conclusion(step.body) if ends else None,
        line=step.line,
    )


def _conclusion(body: str) -> str:
    """The paragraph before the first terminator phrase; empty if the step has none."""
    text = compact_text(body)
    at = next(terminators(text), None)
    if at is None:
        return ""
    return " ".join(text[:at].rstrip().rpartition("\n\n")[2].split())


def load_plugin_blocks(path: Path | str) -> dict[str, str]:
    """Return the query texts that stand in the guide itself, by plugin name; maybe of another
    dialect than the plugins, which count.

    Raises:
        GuideError: the guide cannot be read.
    """
    text = read_text(find_folder(path).guide)
    return {f"plugin_{number}": query for number, query, _ in plugin_blocks(text)}
