"""Attention over one contiguous stretch of keys, with what is needed to merge stretches.

The fused CPU kernel that also returns the log-sum-exp is not a public torch function: it is called
here and nowhere else, and plain torch arithmetic stands in where it is missing.
"""

from __future__ import annotations

import torch

__all__ = ["MASKED", "Partial", "merge", "partial_attention"]

# Finite, and far below any score: a row that sees nothing of a stretch gets a log-sum-exp near this
# value, so that merging gives the stretch a weight of exactly zero instead of NaN.
MASKED = -1.0e30

Partial = tuple[torch.Tensor, torch.Tensor]
"""Output ``[B, H, T, D]`` and log-sum-exp of the scores ``[B, H, T]`` in fp32."""

_FLASH_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def partial_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Partial:
    """Attend ``q [B, H, T, D]`` over ``k, v [B, H, S, D]`` with scale ``D ** -0.5``.

    Args:
        q: queries.
        k: keys.
        v: values.
        causal: query ``i`` sees keys ``0..i`` (``T == S``); excludes ``mask``.
        mask: added to the scores, broadcastable to ``[B, H, T, S]``, in the dtype of ``q``; use
            :data:`MASKED` rather than minus infinity.

    Returns:
        The partial result; its output has the dtype of ``q``.
    """
    if q.device.type == "cpu" and _FLASH_CPU is not None:
        out, lse = _FLASH_CPU(q, k, v, 0.0, causal, attn_mask=mask)
        return out, lse
    return reference_attention(q, k, v, causal=causal, mask=mask)


def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Partial:
    """Do what :func:`partial_attention` does in plain torch, with scores and weights in fp32."""
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, MASKED)
    if mask is not None:
        scores = scores + mask.float()
    lse = scores.logsumexp(-1)
    out = torch.matmul(torch.exp(scores - lse.unsqueeze(-1)), v.float())
    return out.to(q.dtype), lse


def merge(parts: list[Partial]) -> torch.Tensor:
    """Combine the outputs of disjoint stretches of keys; the arithmetic is fp32.

    Returns:
        ``[B, H, T, D]`` in the dtype of the parts.
    """
    if len(parts) == 1:
        return parts[0][0]
    total = parts[0][1]
    for _, lse in parts[1:]:
        total = torch.logaddexp(total, lse)
    out = torch.zeros_like(parts[0][0], dtype=torch.float32)
    for part, lse in parts:
        out.addcmul_(part.float(), torch.exp(lse - total).unsqueeze(-1))
    return out.to(parts[0][0].dtype)
