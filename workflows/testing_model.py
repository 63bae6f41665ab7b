"""A model and a person that answer as an incident file says: for tests, and for trying guides."""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.workflows.guides.cases import Case
from agentrt.workflows.models import Choice, Message, ModelFailure, Reply
from agentrt.workflows.person import Question

__all__ = ["CaseModel", "CasePerson"]


class CaseModel:
    """A scripted model for one incident: answers are the incident's, findings are the evidence.

    ``prompts`` keeps every text that it was shown.
    """

    def __init__(self, case: Case) -> None:
        self.prompts: list[str] = []
        self._answers = dict(case.answers)
        self._id = case.id

    @property
    def name(self) -> str:
        """What identifies the model in a run's fingerprint."""
        return f"scripted:{self._id}"

    async def choose(
        self, messages: Sequence[Message], choices: Sequence[str], *, context: str
    ) -> Choice:
        """Return the incident's answer for the edge.

        Raises:
            ModelFailure: the incident has no answer for it.
        """
        self._keep(messages)
        answer = self._answers.get(context)
        if answer is None:
            raise ModelFailure(
                "unexpected",
                f"The incident {self._id} has no answer for {context}.",
                remedy=f'Add "{context}" = "enabled" or "disabled" to its [answers].',
            )
        return Choice(answer, evidence=f"scripted by {self._id}")

    async def write(
        self, messages: Sequence[Message], *, context: str, max_tokens: int = 512
    ) -> Reply:
        """Return the evidence of the step, word for word, as its findings."""
        self._keep(messages)
        evidence = messages[-1]["content"].partition("## Evidence of this step\n\n")[2]
        return Reply(evidence.rpartition("\n\n")[0] or "Nothing was to be looked up.")

    async def aclose(self) -> None:
        """Nothing is held."""

    def _keep(self, messages: Sequence[Message]) -> None:
        self.prompts += [message["content"] for message in messages]


class CasePerson:
    """Answers gates as the incident's ``[people]`` say, by step; any other question by default."""

    def __init__(self, case: Case) -> None:
        self._answers = {f"{step}/approve": answer for step, answer in case.people.items()}

    async def ask(self, question: Question) -> str | None:
        """Return the answer; never waits."""
        return self._answers.get(question.gate, question.default)
