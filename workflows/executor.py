"""One attempt of a step: its queries, its command or nested guide, findings, edge decisions.

Rows never reach a prompt: queries leave handles, and prompts carry their summaries. Without a model
the findings are put together from those summaries, and prose conditions go to a person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from agentrt.workflows.data import DataStore, Handle
from agentrt.workflows.data_handle import summary_lines
from agentrt.workflows.decide import DECISIONS, Decided, decide_edges
from agentrt.workflows.executor_command import run_command
from agentrt.workflows.executor_context import (
    StepContext,
    StepFailure,
    StepOutcome,
    check_result,
)
from agentrt.workflows.executor_data import ITEM, StepData, condition_names, evaluate
from agentrt.workflows.executor_model import RecordedModel
from agentrt.workflows.guide import Edge, Guide, Step
from agentrt.workflows.models import Choice, GuideModel, Message
from agentrt.workflows.person import Question
from agentrt.workflows.prompt import Upstream, clip, fill, shared_messages, step_messages
from agentrt.workflows.queries import QueryTemplates

if TYPE_CHECKING:
    from agentrt.sandbox.base import Sandbox, SandboxSpec

__all__ = ["ExecutorOptions", "Nested", "StepExecutor"]

MakeSandbox = Callable[["SandboxSpec"], Awaitable["Sandbox"]]


class Nested(Protocol):
    """Runs another guide as a step."""

    async def __call__(
        self, step: Step, parameters: Mapping[str, str], run_id: str
    ) -> dict[str, Any]:
        """Return the child run's ``run_id``, ``status``, ``reason``, ``conclusion``, ``findings``.

        ``run_id`` is where its id begins; a child that a dead process left unfinished is resumed.
        """


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """What steps may use and how much of it.

    ``patience`` is how many seconds a question to a person stays open before its default (an edge
    is not taken) is used; ``ask_person`` False asks nobody. ``findings_tokens`` bounds what the
    model writes per step.
    """

    ask_person: bool = True
    patience: float = 600.0
    findings_tokens: int = 256
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Work:
    """What an attempt has found so far."""

    evidence: list[str] = field(default_factory=list)
    handles: dict[str, Handle] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tokens: int = 0
    cached_tokens: int = 0


class StepExecutor:
    """Runs steps of one guide.

    Args:
        guide: the guide, for its text and parameters.
        templates: its queries.
        store: where tables are kept.
        model: writes findings and decides prose conditions; None leaves the latter to a person.
        sandbox: makes the sandboxes of commands.
        incident: what is known of the incident, for the prompt.
        nested: runs guides that steps name.
        options: see there.
    """

    def __init__(
        self,
        guide: Guide,
        *,
        templates: QueryTemplates | None = None,
        store: DataStore | None = None,
        model: GuideModel | None = None,
        sandbox: MakeSandbox | None = None,
        incident: str = "",
        nested: Nested | None = None,
        options: ExecutorOptions | None = None,
    ) -> None:
        self.guide = guide
        self.options = options or ExecutorOptions()
        self._data = StepData(templates, store)
        self._model = RecordedModel(model) if model is not None else None
        self._sandbox = sandbox
        self._incident = incident
        self._nested = nested
        queries = templates.fingerprint if templates is not None else "none"
        self._name = f"guide; model={model.name if model else 'none'}; queries={queries}"

    @property
    def name(self) -> str:
        """The model and the queries, which decide what steps come to."""
        return self._name

    async def run(self, step: Step, edges: Sequence[Edge], context: StepContext) -> StepOutcome:
        """Run one attempt.

        Raises:
            AgentRTError: a query, command, model call or decision failed.
        """
        work = await self._gather(step, context)
        own = {
            "handles": {name: handle.to_json() for name, handle in work.handles.items()},
            "values": work.values,
        }
        messages = self._messages(step, work, context)
        findings, tokens, cached = await self._findings(step, work, messages, context)
        decided = await self._decide(step, edges, own, [*messages], findings, context)
        for decision in decided.decisions:
            await context.calls.decided(decision)
        result = check_result(
            {
                "findings": findings,
                **own,
                **({"conclusion": step.conclusion} if step.conclusion else {}),
            }
        )
        return StepOutcome(
            result,
            decided.edges,
            work.tokens + tokens + decided.tokens,
            work.cached_tokens + cached + decided.cached_tokens,
            tuple(work.warnings),
        )

    # -- gathering -------------------------------------------------------------------------------

    async def _gather(self, step: Step, context: StepContext) -> _Work:
        base = self._values(context)
        if step.for_each is None:
            work = _Work()
            work.handles = await self._one(step, base, context, work)
            work.evidence += ["\n".join(summary_lines(h)) for h in work.handles.values()]
            return work
        return await self._each(step, base, context)

    async def _each(self, step: Step, base: Mapping[str, Any], context: StepContext) -> _Work:
        """Run the step's work for every item, and make one table of each query's answers."""
        work = _Work()
        items = await self._data.items(self.guide, step, context)
        parts: dict[str, list[tuple[Any, Handle]]] = {}
        columns: dict[str, list[Any]] = {}
        for number, item in enumerate(items):
            single = _Work()
            found = await self._one(step, {**base, ITEM: item}, context, single, number)
            for name, handle in found.items():
                parts.setdefault(name, []).append((item, handle))
            for name, value in single.values.items():
                columns.setdefault(name, []).append(value)
            work.evidence += [f"For {item}:\n{text}" for text in single.evidence]
            work.warnings += single.warnings
            work.tokens += single.tokens
            work.cached_tokens += single.cached_tokens
        work.values = {"items": items, **columns}
        for name, pieces in parts.items():
            work.handles[name] = await self._data.merged(name, pieces)
        work.evidence += ["\n".join(summary_lines(h)) for h in work.handles.values()]
        return work

    async def _one(
        self,
        step: Step,
        values: Mapping[str, Any],
        context: StepContext,
        work: _Work,
        number: int | None = None,
    ) -> dict[str, Handle]:
        """Run queries, command and nested guide once; return the handles of the queries."""
        handles = {use.query: await self._data.query(use, values, context) for use in step.queries}
        if step.command is not None:
            work.values["command"] = await self._command(step, values, handles, context, work)
        if step.guide is not None:
            work.values["guide"] = await self._guide(step, values, context, work, number)
        return handles

    async def _command(
        self,
        step: Step,
        values: Mapping[str, Any],
        handles: Mapping[str, Handle],
        context: StepContext,
        work: _Work,
    ) -> dict[str, Any]:
        if self._sandbox is None:
            raise StepFailure(
                f"{step.id} has a command, and there is no sandbox to run it in.",
                remedy="Give the run a sandbox (--sandbox auto), or leave the command out.",
            )
        seen = [result.get("handles", {}) for result in context.results.values()]
        inputs = {name: Handle.from_json(data) for found in seen for name, data in found.items()}
        done = await run_command(
            step,
            {**self.options.env, **{name: str(value) for name, value in values.items()}},
            {**inputs, **handles},
            make=self._sandbox,
            store=self._data.store,
            image=self.options.image,
            calls=context.calls,
        )
        work.evidence.append(done.evidence)
        work.warnings += done.warnings
        return done.values

    async def _guide(
        self,
        step: Step,
        values: Mapping[str, Any],
        context: StepContext,
        work: _Work,
        number: int | None,
    ) -> dict[str, Any]:
        if self._nested is None:
            raise StepFailure(
                f"{step.id} runs the guide {step.guide}, and guides cannot be nested here.",
                remedy="Run it through make_runner, which loads nested guides.",
            )
        given = {name: str(value) for name, value in values.items()}
        suffix = "" if number is None else f".{number}"
        child = f"{context.run_id}.{step.id}{suffix}"
        outcome = await context.calls.call(
            "tool_called",
            {"guide": step.guide, "run": child, "parameters": given},
            partial(self._nested, step, given, child),
        )
        work.tokens += int(outcome.get("tokens") or 0)
        work.cached_tokens += int(outcome.get("cached_tokens") or 0)
        status = str(outcome.get("status"))
        if status not in ("succeeded", "inconclusive"):
            raise StepFailure(
                f"The guide {step.guide} ended {status}: {outcome.get('reason')}.",
                remedy=f"See its run {outcome.get('run_id')}.",
            )
        conclusion = str(outcome.get("conclusion") or "none")
        findings = "\n".join(f"- {text}" for text in outcome.get("findings", {}).values())
        work.evidence.append(
            clip(f"Guide {step.guide} ended {status}; conclusion: {conclusion}\n{findings}", 4000)
        )
        return {"status": status, "conclusion": conclusion, "run": str(outcome.get("run_id"))}

    def _values(self, context: StepContext) -> dict[str, Any]:
        return dict(context.parameters)

    # -- findings and decisions ------------------------------------------------------------------

    def _messages(self, step: Step, work: _Work, context: StepContext) -> list[Message]:
        upstream = [
            Upstream(name, self._title(name), str(result.get("findings", "")))
            for name, result in context.results.items()
        ]
        return step_messages(step, context.parameters, upstream=upstream, evidence=work.evidence)

    def _title(self, step_id: str) -> str:
        return next((step.title for step in self.guide.steps if step.id == step_id), step_id)

    def _shared(self, context: StepContext) -> list[Message]:
        return shared_messages(self.guide, context.parameters, incident=self._incident)

    async def _findings(
        self, step: Step, work: _Work, messages: Sequence[Message], context: StepContext
    ) -> tuple[str, int, int]:
        """Return the findings' text, the tokens it took, and how many of them were cached."""
        if self._model is None:
            said = work.evidence or [fill(step.instructions, context.parameters).strip()]
            return clip("\n\n".join(filter(None, said)), 4000), 0, 0
        shared = self._shared(context)
        reply = await self._model.write(
            shared, messages, step.id, self.options.findings_tokens, context.calls
        )
        return reply.text.strip(), reply.tokens, reply.cached_tokens

    async def _decide(
        self,
        step: Step,
        edges: Sequence[Edge],
        own: Mapping[str, Any],
        messages: list[Message],
        findings: str,
        context: StepContext,
    ) -> Decided:
        names = condition_names(edge.predicate for edge in edges)
        data = await self._data.named(self.guide, context, own, names)
        model, shared = self._model, self._shared(context)

        async def ask_model(edge: Edge) -> Choice:
            if model is None:
                raise StepFailure("There is no model.", remedy="Configure one.")
            return await model.choose(
                shared, messages, self._filled(edge, context), findings, context.calls
            )

        async def ask_person(edge: Edge, why: str) -> tuple[str, str]:
            filled = self._filled(edge, context)
            text = (
                f"{step.id} ({step.title}): does this hold: {filled.condition or filled.predicate}?"
                f" It leads to {edge.target}. Asked because {why}."
            )
            question = Question(
                f"{step.id}/{edge.name}",
                step.id,
                text,
                DECISIONS,
                "disabled",
                self.options.patience,
            )
            return await context.calls.ask(question)

        return await decide_edges(
            edges,
            data,
            evaluate=evaluate,
            model=ask_model if model is not None else None,
            person=ask_person if self.options.ask_person else None,
        )

    def _filled(self, edge: Edge, context: StepContext) -> Edge:
        return replace(edge, condition=fill(edge.condition, context.parameters))
