"""What the engine asks of whoever computes its steps, and what comes back. No torch here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agentrt.engine.choices import ChoiceTrie
from agentrt.engine.params import SamplingParams
from agentrt.scheduling.plan import Sample, StepPlan, StepResult

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.matcher import CompiledGrammar

__all__ = ["EngineSample", "StepHandle", "TokenLogprob", "TurnBackend"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log probabilities under the model itself: before penalties, temperature and cuts."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """``(token, logprob)`` of the most likely tokens, best first."""


@dataclass(slots=True)
class EngineSample(Sample):
    """A sample with what only the engine cares about; the scheduler sees a plain ``Sample``."""

    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of ``tokens``, or empty if the request did not ask."""
    error: str | None = None
    """Why ``finish`` is ``failed``."""
    own: bool = False
    """The failure is the request's own, as of a grammar that cannot go on; nothing is broken."""


@dataclass(frozen=True, slots=True, eq=False)
class StepHandle:
    """A step that was launched: to be handed to ``TurnBackend.wait``, once, in the order of launch.

    What else it holds is its backend's own business.
    """

    plan: StepPlan


class TurnBackend(Protocol):
    """Runs steps for turns that were opened before. One thread calls it.

    A backend implements ``launch`` and ``wait``. At most two steps are under way: a second one only
    after ``follows`` has said that it may be, and then each of its slices goes on by one token
    where the first one's slice of the same turn ends.
    """

    def open(
        self,
        turn_id: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        forced: Sequence[int] | None = None,
        choices: ChoiceTrie | None = None,
        grammar: CompiledGrammar | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Make a turn known. With ``forced``, every step is computed and these tokens come out.

        ``choices`` are the tokens of ``sampling.choices``: one of these paths comes out.
        ``grammar`` is ``sampling.grammar``, compiled for the model's tokens. ``adapter`` is what
        the turn goes through beside the model's weights.

        Raises:
            InvalidRequest: a token is not in the vocabulary, or a list is empty.
            InternalError: choices or grammar are not there in the form that the model needs.
        """
        ...

    # A wrapper that does not pass this on would have pages hold what they should not.
    @abstractmethod
    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Replace what follows the first ``keep`` prompt tokens of a turn without output.

        Raises:
            InvalidRequest: a token is not in the vocabulary; the turn is as it was.
        """
        ...

    @abstractmethod
    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice of ``plan``; on a device, do not wait for it.

        The page tables are read here, and not after.
        """
        ...

    @abstractmethod
    def wait(self, handle: StepHandle) -> StepResult:
        """Block until a launched step's samples are known, and return them.

        ``finish`` is ``stop`` after the last forced token, after the last one of a choice and where
        a grammar lets nothing follow, and ``failed`` where the model gave no usable logits or the
        grammar cannot go on; other reasons to stop are not the backend's.
        """
        ...

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every slice of ``plan``; block until the samples are known."""
        return self.wait(self.launch(plan))

    def follows(self, plan: StepPlan) -> bool:
        """Whether the step after ``plan``, launched before, may be launched before its samples are
        known: then nothing but these samples decides how each of its turns goes on.
        """
        return False

    def give_up_when(self, unwanted: Callable[[], bool]) -> None:
        """Ask from now on, while a long step is launched, whether it is still wanted.

        One that is not may be given up: its result is ``abandoned``. A backend need not do so.
        """
        return

    def close(self, turn_id: str) -> None:
        """Forget a turn; unknown ids are ignored."""
        ...

    def restart(self) -> None:
        """Make what computes anew after a fault: no page holds anything then, no copy is under way.

        Turns stay open, with their tokens and the state of their sampling. No turn holds pages
        while this runs, and no step is under way. What it raises counts as another fault.
        """
        ...
