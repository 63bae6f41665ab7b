"""``agentrt guide``: check, plan, draw, run and test troubleshooting guides."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from agentrt.cli import guide_run
from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.workflows.lint import Finding
    from agentrt.workflows.plan import Plan
    from agentrt.workflows.testing import CaseResult

__all__ = ["app"]

app = typer.Typer(
    help="Check, plan, run and test troubleshooting guides.",
    no_args_is_help=True,
    add_completion=False,
)

GuideName = Annotated[
    str, typer.Argument(metavar="GUIDE", help="A guide's file or folder, or a shipped one's name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]


@app.command(epilog="Example: agentrt guide lint queue_backlog")
def lint(
    guide: GuideName,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired, then go on.")] = (
        False
    ),
    format_name: Annotated[str, typer.Option("--format", help="text, json or sarif.")] = "text",
    model: Annotated[
        str, typer.Option(help="none, embedded or a URL: a model adds its remarks, marked as such.")
    ] = "none",
) -> None:
    """Find what would mislead a reader or a run. Exit code 1 if there are findings."""
    from agentrt.workflows.guides import find_guide
    from agentrt.workflows.lint import apply_fixes, lint_path, to_sarif
    from agentrt.workflows.stepfly import find_folder

    _one_of("--format", format_name, ("text", "json", "sarif"))
    path = find_guide(guide)
    if path.is_dir():
        path = find_folder(path).guide
    findings = lint_path(path)
    if fix and any(finding.fix for finding in findings):
        text = apply_fixes(path.read_text(encoding="utf-8"), findings)
        path.write_text(text, encoding="utf-8")
        findings = lint_path(path)
    if model != "none":
        from agentrt.cli.guide_session import remarks_of_model

        findings = remarks_of_model(path, model, findings)
    if format_name == "text":
        _show_findings(findings, path)
    elif format_name == "sarif":
        _print_json(to_sarif(findings, str(path)))
    else:
        _print_json({"guide": str(path), "findings": [_finding(each) for each in findings]})
    raise typer.Exit(1 if findings else 0)


def _finding(finding: Finding) -> dict[str, Any]:
    fields = ("path", "line", "category", "rule", "message", "suggestion", "source")
    return {name: getattr(finding, name) for name in fields} | {"fixable": bool(finding.fix)}


def _show_findings(findings: Sequence[Finding], path: Path) -> None:
    console = Console()
    for each in findings:
        mark = f"{each.category}/{each.rule}" + (" (model)" if each.source == "model" else "")
        place = path.parent / each.path if each.path else path
        text = f"{place}:{each.line}: {mark}: {each.message} {each.suggestion}".strip()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    fixable = sum(1 for each in findings if each.fix)
    note = f", {fixable} of them fixed by --fix" if fixable else ""
    console.print(f"{path}: {len(findings)} findings{note}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: agentrt guide plan latency_spike")
def plan(
    guide: GuideName,
    as_json: Json = False,
    proposed: Annotated[
        bool,
        typer.Option("--proposed", help="Let a model propose the plan of a guide that is prose."),
    ] = False,
    model: Annotated[
        str, typer.Option("--model", help="With --proposed: embedded, or an OpenAI-compatible URL.")
    ] = "embedded",
) -> None:
    """Show what a run would do, without running it: steps, width, critical path, tokens, limits."""
    from agentrt.workflows.guides import find_guide
    from agentrt.workflows.plan import estimate

    made = guide_run.propose(find_guide(guide), model) if proposed else _plan_of(guide)
    figures = estimate(made)
    way, length = made.critical_path(dict.fromkeys(made.steps, 1.0))
    facts = {
        "guide": made.guide.name,
        "title": made.guide.title,
        "fingerprint": made.fingerprint,
        "steps": [_step(made, name) for name in made.steps],
        "order": [name for name in made.order if name in made.steps],
        "width": figures.width,
        "critical_path": list(way),
        "tokens": {"shared": figures.shared, "steps": figures.tokens, "total": figures.total},
        "memory": figures.memory,
        "cpu": figures.cpu,
    }
    if as_json:
        _print_json(facts)
    else:
        _show_plan(facts, int(length))


def _plan_of(guide: str) -> Plan:
    from agentrt.workflows.guides import find_guide, open_guide
    from agentrt.workflows.plan import make_plan

    return make_plan(open_guide(find_guide(guide)))


def _step(plan: Plan, name: str) -> dict[str, Any]:
    node = plan.nodes[name]
    queries = [use.query for use in node.step.queries] if node.step else []
    edges = [
        {"target": edge.target, "if": edge.predicate or edge.condition, "by": _by(edge)}
        for edge in node.outgoing
    ]
    return {"id": name, "title": node.title, "queries": queries, "edges": edges}


def _by(edge: Any) -> str:
    if edge.unconditional:
        return "always"
    if edge.otherwise:
        return "otherwise"
    return "code" if edge.predicate else "model or person"


def _show_plan(facts: dict[str, Any], length: int) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("step", "title", "queries", "leads to"):
        table.add_column(column, overflow="fold")
    for step in facts["steps"]:
        leads = ", ".join(f"{edge['target']} ({edge['by']})" for edge in step["edges"])
        table.add_row(step["id"], step["title"], ", ".join(step["queries"]), leads)
    console = Console()
    console.print(table, markup=False, highlight=False)
    tokens, memory = facts["tokens"], facts["memory"]
    lines = [
        f"at most {facts['width']} steps at once; the longest way has {length} steps",
        f"about {tokens['shared']} tokens shared by all steps, {tokens['total']} in all",
        f"declared limits: {memory >> 20} MiB of memory, {facts['cpu']:g} cores",
        f"fingerprint {facts['fingerprint'][:16]}",
    ]
    console.print("\n".join(lines), markup=False, highlight=False)


@app.command(epilog="Example: agentrt guide graph queue_backlog --format mermaid")
def graph(
    guide: GuideName,
    format_name: Annotated[str, typer.Option("--format", help="mermaid, dot, svg or ascii.")] = (
        "ascii"
    ),
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A file, not stdout.")] = None,
) -> None:
    """Draw a guide's plan."""
    from agentrt.workflows import render

    drawers = {
        "mermaid": render.to_mermaid,
        "dot": render.to_dot,
        "svg": render.to_svg,
        "ascii": render.to_ascii,
    }
    _one_of("--format", format_name, tuple(drawers))
    text = drawers[format_name](_plan_of(guide)).rstrip("\n") + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error}.", remedy="Give another -o."
        ) from error


@app.command("test", epilog="Example: agentrt guide test --all --junit guides.xml")
def check(
    guide: Annotated[
        str | None, typer.Argument(metavar="[GUIDE]", help="A guide's file, folder or name.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every guide that ships.")] = False,
    as_json: Json = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit report, for CI.")
    ] = None,
) -> None:
    """Run a guide's incidents on recorded telemetry with a scripted model; compare the outcome.

    Each incident is run with five workers and with one. Exit code 1 if any differs from what its
    file expects: the steps taken, the conclusion, or an answer that a prompt gives away.
    """
    import anyio

    from agentrt.workflows.guides import find_guide, shipped_guides
    from agentrt.workflows.testing import check_guide, to_junit

    if every == (guide is not None):
        raise ConfigError("Nothing says what to test.", remedy="Name a guide, or give --all.")
    paths = list(shipped_guides().values()) if every else [find_guide(guide or "")]
    results: list[CaseResult] = []
    for path in paths:
        found = anyio.run(check_guide, path)
        results += found
        if not as_json:
            _show_results(found)
    failed = [each for each in results if not each.passed]
    if junit is not None:
        junit.write_text(to_junit(results), encoding="utf-8")
    if as_json:
        _print_json(
            {
                "passed": len(results) - len(failed),
                "failed": len(failed),
                "results": [each.to_json() for each in results],
            }
        )
    else:
        typer.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    raise typer.Exit(1 if failed else 0)


def _show_results(results: Sequence[CaseResult]) -> None:
    console = Console()
    for each in results:
        word, style = ("ok", "green") if each.passed else ("FAILED", "red")
        path = " ".join(step.removeprefix("Step") for step in each.summary.path)
        line = f"{word:<6} {each.guide} {each.case}: {each.summary.status}, steps {path}"
        if each.seconds and each.serial_seconds:
            line += f" ({each.seconds:g} s, one at a time {each.serial_seconds:g} s)"
        console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)
        for problem in each.problems:
            console.print(f"       {problem}", highlight=False, soft_wrap=True, markup=False)


def _one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(f"{option} is {given!r}.", remedy=f"Choose one of: {', '.join(known)}.")


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")


guide_run.register(app)
