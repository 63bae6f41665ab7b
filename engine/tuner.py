"""How many threads a step is worth: decided from how long steps take. Pure; the shell is ``pace``.

A step that runs on as many threads as there are processors waits for the slowest of them. While a
neighbour keeps one busy, fewer threads are faster, by a lot; when it has gone, more are. Steps are
compared by their cost: seconds over the least seconds that a step of like size took lately.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ThreadTuner", "TunerConfig"]


@dataclass(frozen=True, slots=True)
class TunerConfig:
    """When to try another number of threads.

    Args:
        slow: cost from which fewer threads are tried.
        patience: steps of each kind that a trial takes, and that must be slow before one begins.
        rest: steps after a trial that changed nothing before the next one of its kind; doubled each
            time, up to ``longest_rest``.
        retry: steps until more threads are tried after their number was lowered: what slowed all
            of the machine for a moment looks like a neighbour, and costs more than a trial.
        longest_rest: the most of it.
        forget: how much the least known seconds grow with each step, so that old luck is forgotten.
    """

    slow: float = 1.5
    patience: int = 3
    rest: int = 32
    retry: int = 8
    longest_rest: int = 1024
    forget: float = 0.002


@dataclass(slots=True)
class _Trial:
    """Another number of threads being tried, in turns with the one that it has to beat.

    In turns, so that what slows the whole machine for a while slows both.
    """

    threads: int
    home: int
    before: float
    """The cost of a step before the trial."""
    costs: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    @property
    def away(self) -> bool:
        """Whether the next step is one of the trial's."""
        return len(self.costs) <= len(self.beside)


@dataclass(slots=True)
class _Rest:
    """Counts steps until trials in one direction may begin again."""

    length: int
    left: int

    def again(self, longest: int) -> None:
        self.length = min(2 * self.length, longest)
        self.left = self.length


class ThreadTuner:
    """Chooses threads from step times.

    Args:
        most: threads to start with and never to exceed; at least 1.
        config: when to try others.
    """

    def __init__(self, most: int, config: TunerConfig | None = None) -> None:
        self._config = config or TunerConfig()
        self._most = max(1, most)
        self._threads = self._most
        self._least: dict[tuple[int, int], float] = {}
        self._recent: list[float] = []
        self._trial: _Trial | None = None
        self._down = _Rest(self._config.rest, 0)
        self._up = _Rest(self._config.rest, self._config.rest)

    @property
    def threads(self) -> int:
        """Return how many threads the next step should run on, from 1 to ``most``."""
        trial = self._trial
        return trial.threads if trial is not None and trial.away else self._threads

    def observe(self, tokens: int, context: int, seconds: float) -> int:
        """Take in a step and return the threads for the next one.

        Args:
            tokens: how many the step computed.
            context: how many tokens of keys and values it read.
            seconds: how long it took, on :attr:`threads` threads.
        """
        cost = self._cost((tokens.bit_length(), context.bit_length()), seconds)
        if self._most > 1:
            if self._trial is not None:
                self._try(self._trial, cost)
            else:
                self._watch(cost)
        return self.threads

    def _cost(self, size: tuple[int, int], seconds: float) -> float:
        seconds = max(seconds, 1e-9)
        least = min(seconds, self._least.get(size, seconds) * (1 + self._config.forget))
        self._least[size] = least
        return seconds / least

    def _watch(self, cost: float) -> None:
        patience = self._config.patience
        self._recent = [*self._recent[1 - patience :], cost] if patience > 1 else [cost]
        self._down.left = max(0, self._down.left - 1)
        self._up.left = max(0, self._up.left - 1)
        if len(self._recent) < patience:
            return
        # Every one of them slow: a single long step is no neighbour.
        slow = min(self._recent) >= self._config.slow
        if slow and self._threads > 1 and not self._down.left:
            self._begin(max(1, self._threads // 2))
        elif self._threads < self._most and not self._up.left:
            self._begin(min(self._most, 2 * self._threads))

    def _begin(self, threads: int) -> None:
        self._trial = _Trial(threads, self._threads, _middle(self._recent))

    def _try(self, trial: _Trial, cost: float) -> None:
        away = trial.away
        (trial.costs if away else trial.beside).append(cost)
        # A trial that is far worse than home is over at once.
        hopeless = away and cost > 2 * max(trial.before, 1.0)
        if len(trial.beside) < self._config.patience and not hopeless:
            return
        self._trial = None
        self._recent = []
        lower = trial.threads < trial.home
        needed = 0.95 if lower else 1.0
        if not hopeless and _middle(trial.costs) < _middle(trial.beside) * needed:
            self._threads = trial.threads
            again = self._config.retry if lower else self._config.rest
            self._down = _Rest(self._config.rest, 0)
            self._up = _Rest(again, again)
        else:
            (self._down if lower else self._up).again(self._config.longest_rest)


def _middle(costs: list[float]) -> float:
    return sorted(costs)[len(costs) // 2]
