"""Tests of guides: recorded telemetry, a scripted model, an expected path and conclusion.

Every incident is run twice, with several workers and with one: both runs have to take the expected
path. No prompt of either may hold what the incident file says the answer is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from agentrt.errors import GuideError, InternalError
from agentrt.workflows.events import Event
from agentrt.workflows.guide import END
from agentrt.workflows.guides import guide_name
from agentrt.workflows.guides.cases import Case, case_files, load_case
from agentrt.workflows.plan import Plan
from agentrt.workflows.prompt import fill
from agentrt.workflows.schedule import fold
from agentrt.workflows.session import open_session
from agentrt.workflows.session_parts import SessionSettings
from agentrt.workflows.simulate import edges_on_path, path_times, simulate
from agentrt.workflows.testing_model import CaseModel, CasePerson

__all__ = [
    "CaseResult",
    "RunSummary",
    "check_case",
    "check_guide",
    "compare",
    "leaks",
    "summarise",
    "to_junit",
]

WORKERS = 5


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended: its status, the steps that succeeded in the guide's order, its conclusion.

    ``by`` counts the decided edges by who decided them: rule, code, model, person.
    """

    status: str
    path: tuple[str, ...]
    conclusion: str
    reason: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came of one incident. ``problems`` is empty where all is as expected.

    ``seconds`` and ``serial_seconds`` are the lengths of the run in virtual time, by the times of
    the incident, with ``WORKERS`` workers and with one; None where it has no times.
    """

    guide: str
    case: str
    title: str
    file: str
    summary: RunSummary
    problems: tuple[str, ...] = ()
    seconds: float | None = None
    serial_seconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether everything is as expected."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        data = asdict(self)
        data["summary"]["path"] = list(self.summary.path)
        return data | {"passed": self.passed, "problems": list(self.problems)}


def summarise(plan: Plan, events: Sequence[Event]) -> RunSummary:
    """Return how a run went, from its log alone."""
    state = fold(plan, events)
    statuses = state.statuses()
    ends = {edge.name: edge.source for edge in plan.incoming(END)}
    conclusions = [_conclusion(plan, ends[name]) for name in state.conclusions]
    by: dict[str, int] = {}
    for event in events:
        if event.kind == "edge_decided":
            who = str(event.data.get("by"))
            by[who] = by.get(who, 0) + 1
    return RunSummary(
        status=state.status,
        path=tuple(step for step in plan.steps if statuses[step] == "succeeded"),
        conclusion=" ".join(filter(None, conclusions)),
        reason=state.reason,
        failed={step: state.steps[step].error for step in state.failed_steps()},
        by=by,
    )


def _conclusion(plan: Plan, step: str) -> str:
    found = plan.nodes[step].step
    return (found.conclusion or found.title) if found else ""


def compare(case: Case, summary: RunSummary) -> list[str]:
    """Return what differs from what the incident expects, as sentences; empty if nothing does."""
    expected = case.expected
    if expected is None:
        return []
    problems = []
    if summary.status != expected.status:
        why = f" ({summary.reason})" if summary.reason else ""
        problems.append(f"the run ended {summary.status}{why}, not {expected.status}")
    if expected.path and set(summary.path) != set(expected.path):
        problems.append(_path_problem(expected.path, summary))
    if expected.conclusion.lower() not in summary.conclusion.lower():
        problems.append(
            f"the conclusion is {summary.conclusion!r}, which does not say {expected.conclusion!r}"
        )
    return problems


def _path_problem(expected: Sequence[str], summary: RunSummary) -> str:
    missing = [step for step in expected if step not in summary.path]
    extra = [step for step in summary.path if step not in expected]
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"not expected {', '.join(extra)}"] if extra else []
    errors = [f"{step} failed: {error}" for step, error in summary.failed.items()]
    return "the path differs: " + "; ".join([*parts, *errors])


def leaks(case: Case, prompts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return which of the incident's expectations a prompt gives away, as sentences.

    ``known`` are texts that may well hold it: the guide, which lists every conclusion there is.
    """
    expected = case.expected
    if expected is None:
        return []
    shown = "\n".join(_without(prompt, known) for prompt in prompts).lower()
    secrets = {"cause": expected.cause, "conclusion": expected.conclusion}
    return [
        f"a prompt holds the expected {name}: {text!r}"
        for name, text in secrets.items()
        if text and text.lower() in shown
    ]


def _without(prompt: str, known: Iterable[str]) -> str:
    for text in known:
        prompt = prompt.replace(text.strip(), "") if text.strip() else prompt
    return prompt


def virtual_times(plan: Plan, case: Case, summary: RunSummary) -> tuple[float, float] | None:
    """Return the run's length with ``WORKERS`` workers and with one, in virtual seconds."""
    if not case.times:
        return None
    edges = edges_on_path(plan, summary.path)
    times = path_times(summary.path, case.times)
    many, one = (simulate(plan, times, edges, workers=count) for count in (WORKERS, 1))
    return many.seconds, one.seconds


async def check_guide(path: Path) -> list[CaseResult]:
    """Run every incident beside a guide and compare; the runs' files are thrown away.

    Raises:
        GuideError: the guide, an incident or the recording is wrong, or there are no incidents.
    """
    files = case_files(path)
    if not files:
        raise GuideError(
            f"{path.parent} has no incidents.",
            remedy="Add incidents/NAME.toml; see docs/guides.md.",
        )
    with tempfile.TemporaryDirectory(prefix="agentrt-guide-test-") as name:
        return [await check_case(path, file, Path(name)) for file in files]


async def check_case(path: Path, file: Path, directory: Path) -> CaseResult:
    """Run one incident with ``WORKERS`` workers and with one, and compare both.

    Args:
        directory: for the runs' files; recordings made there are used again.
    """
    case = load_case(file)
    name, problems, found = guide_name(path), [], []
    for workers in (WORKERS, 1):
        plan, summary, model = await _run(path, case, workers, directory)
        found.append(summary)
        problems += [_marked(text, workers) for text in compare(case, summary)]
        problems += leaks(case, model.prompts, _known(plan, case))
    if (found[0].path, found[0].conclusion) != (found[1].path, found[1].conclusion):
        problems.append("one worker takes another path than several")
    times = virtual_times(plan, case, found[0])
    return CaseResult(
        name,
        case.id,
        case.title,
        str(file),
        found[0],
        tuple(dict.fromkeys(problems)),
        *(times or (None, None)),
    )


async def _run(
    path: Path, case: Case, workers: int, directory: Path
) -> tuple[Plan, RunSummary, CaseModel]:
    settings = SessionSettings(
        str(path),
        incident=case.path,
        model="scripted",
        workers=workers,
        patience=0.0,
        recorded=True,
    )
    async with open_session(settings, directory, person=CasePerson(case)) as session:
        run_id = f"{guide_name(path)}-{case.id}-{workers}"
        await session.runner.run(session.parameters, run_id=run_id)
        summary = summarise(session.plan, session.log.events(run_id))
        if not isinstance(session.model, CaseModel):
            raise InternalError("A scripted session has another model.")
        return session.plan, summary, session.model


def _marked(problem: str, workers: int) -> str:
    return problem if workers == WORKERS else f"with one worker {problem}"


def _known(plan: Plan, case: Case) -> list[str]:
    """The guide's own texts, which a prompt may hold: they name every conclusion there is."""
    steps = [node.step for node in plan.nodes.values() if node.step]
    texts = [plan.guide.text, *(step.title for step in steps)]
    return texts + [fill(step.instructions, case.parameters) for step in steps]


def to_junit(results: Sequence[CaseResult]) -> str:
    """Return the results as a JUnit report: a suite for each guide, a case for each incident."""
    root = ElementTree.Element("testsuites", name="agentrt guide test")
    for guide in dict.fromkeys(each.guide for each in results):
        own = [each for each in results if each.guide == guide]
        failed = sum(1 for each in own if not each.passed)
        suite = ElementTree.SubElement(
            root, "testsuite", name=guide, tests=str(len(own)), failures=str(failed)
        )
        for each in own:
            case = ElementTree.SubElement(
                suite, "testcase", classname=guide, name=f"{each.case} {each.title}", file=each.file
            )
            if not each.passed:
                node = ElementTree.SubElement(case, "failure", message=each.problems[0])
                node.text = "\n".join(each.problems)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
