"""Drawing tokens from logits: tensors in, tensors out, alike on every device and in every batch.

Host and device sampling both end here, so that a turn's tokens do not depend on which of them has
drawn. The randomness of a draw is one number, a function of the request's seed and the position of
the token; it is turned into a token by inverting the cumulated weights. Nothing here waits for a
device, and what is launched depends on shapes alone, so that it can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Cuts",
    "best_tokens",
    "drawn_tokens",
    "seed_words",
    "token_weights",
    "uniform",
    "uniforms",
]

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
LEAST_TEMPERATURE = 1e-30
"""A temperature that float32 rounds to 0 would make 0 / 0 of the best token."""


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits so that every input bit moves about half of the output bits (splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def seed_words(seeds: Iterable[int]) -> NDArray[np.uint64]:
    """Return whole numbers of any size as 64 bits each."""
    return np.array([seed & _MASK for seed in seeds], np.uint64)


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the number in [0, 1) that each of ``seeds [n]`` has at its position, fp64 ``[n]``."""
    golden = np.uint64(_GOLDEN)
    stream = _mix(seeds + golden)
    words = _mix(stream + (positions.astype(np.uint64) + np.uint64(1)) * golden)
    # 52 bits: the product with any sum of weights then rounds to less than that sum.
    return (words >> np.uint64(12)) / 2.0**52


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that ``seed`` has at ``position``."""
    return float(uniforms(seed_words([seed]), np.array([position], np.int64))[0])


@dataclass(frozen=True, slots=True)
class Cuts:
    """Which tokens may be drawn at all, by row; each a column ``[rows, 1]``.

    ``most`` is the largest of ``top_k`` that cuts, where that is known: looking for so many is
    quicker than sorting.
    """

    top_k: Tensor
    """int64: keep the k most likely tokens and those exactly as likely as the k-th; 0 keeps all."""
    share: Tensor
    """fp64: mass that may be cut, ``1 - top_p``; 0 cuts nothing."""
    min_p: Tensor
    """fp32: keep tokens at least this times as likely as the most likely one."""
    most: int | None = None
    by_mass: bool = True
    """Whether any ``share`` is above 0."""


def best_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's best token, int64 ``[rows]``, and whether its logits are usable, bool.

    They are not if there is a NaN, plus infinity or nothing finite: NaN wins in ``max``, so that
    one pass tells both.
    """
    best, tokens = logits.max(dim=1)
    return tokens, torch.isfinite(best)


def drawn_tokens(logits: Tensor, numbers: Tensor, temperature: Tensor, cuts: Cuts | None) -> Tensor:
    """Draw a token a row, int64 ``[rows]``.

    Args:
        logits: fp32 ``[rows, vocab]``; overwritten. A row without usable ones gives any token.
        numbers: fp64 ``[rows]`` in [0, 1): the randomness.
        temperature: fp32 ``[rows, 1]``.
        cuts: None where no row has any.
    """
    return _invert(token_weights(logits, temperature, cuts), numbers)


def token_weights(logits: Tensor, temperature: Tensor, cuts: Cuts | None) -> Tensor:
    """Return unnormalised probabilities fp32 ``[rows, vocab]`` after temperature and cuts.

    The most likely token has weight 1 and is never cut. ``logits`` is overwritten.
    """
    logits.sub_(logits.amax(dim=1, keepdim=True))
    logits.div_(temperature.clamp(min=LEAST_TEMPERATURE))
    if cuts is None:
        return logits.exp_()
    ascending = None
    if cuts.by_mass or cuts.most is None:
        ascending = _sorted(logits)
    floor = _floor_of_rank(logits, ascending, cuts)
    if floor is not None:
        logits.masked_fill_(logits < floor, -torch.inf)
    if cuts.by_mass and ascending is not None:
        if floor is not None:
            ascending.masked_fill_(ascending < floor, -torch.inf)
        logits.masked_fill_(logits < _floor_of_mass(ascending, cuts.share), -torch.inf)
    weights = logits.exp_()
    return weights.masked_fill_(weights < cuts.min_p, 0)


def _floor_of_rank(logits: Tensor, ascending: Tensor | None, cuts: Cuts) -> Tensor | None:
    """Return the logit of each row's k-th most likely token, ``[rows, 1]``; None if none cuts."""
    vocab = logits.shape[1]
    if ascending is not None:
        place = torch.where(cuts.top_k > 0, vocab - cuts.top_k, 0)
        return ascending.gather(1, place.clamp_(min=0))
    if not cuts.most:
        return None
    best = logits.topk(min(cuts.most, vocab), dim=1).values
    floor = best.gather(1, (cuts.top_k - 1).clamp_(min=0, max=best.shape[1] - 1))
    cutting = (cuts.top_k > 0) & (cuts.top_k < vocab)
    return torch.where(cutting, floor, -torch.inf)


def _floor_of_mass(ascending: Tensor, share: Tensor) -> Tensor:
    """Return the logit of the last token kept once the more likely ones reach ``1 - share``.

    It is a logit, so that the result does not depend on how a sort orders equal tokens.
    """
    sums = ascending.exp().cumsum(dim=1, dtype=torch.float64)
    # What may go has a mass of ``share`` at most; the first token beyond it is the last one kept.
    last = torch.searchsorted(sums, sums[:, -1:] * share, right=True)
    return ascending.gather(1, last.clamp_(max=ascending.shape[1] - 1))


def _sorted(rows: Tensor) -> Tensor:
    """Return each row in ascending order. On CPU, numpy's sort takes a fraction of torch's time."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(dim=1).values


def _block(vocab: int) -> int:
    """Return how many tokens are summed up first: a divisor of the vocabulary where one fits."""
    return next((size for size in range(2048, 255, -1) if vocab % size == 0), min(vocab, 1024))


def _invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """Return, a row, the first token whose cumulated weight exceeds ``number`` of the whole.

    Blocks of tokens are summed up, the block is found, then the token in it: a sum over all tokens
    one by one takes a device many times as long.
    """
    rows, vocab = weights.shape
    size = _block(vocab)
    count = -(-vocab // size)
    if count * size != vocab:
        weights = F.pad(weights, (0, count * size - vocab))
    blocks = weights.view(rows, count, size)
    sums = blocks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    target = numbers.unsqueeze(1) * sums[:, -1:]
    place = torch.searchsorted(sums, target, right=True).clamp_(max=count - 1)
    before = F.pad(sums, (1, 0)).gather(1, place)
    chosen = blocks.gather(1, place.unsqueeze(2).expand(-1, 1, size)).squeeze(1)
    within = chosen.cumsum(dim=1, dtype=torch.float64)
    # Rounding may leave a rest that is no less than the block: its last token with weight is meant.
    zero = torch.zeros_like(target)
    rest = torch.minimum(target - before, torch.nextafter(within[:, -1:], zero))
    return (place * size + torch.searchsorted(within, rest, right=True))[:, 0]
