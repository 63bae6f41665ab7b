"""Random batches over pages, and what attention over them has to be, computed densely in fp64."""

from __future__ import annotations

import random

import torch

from agentrt.engine.attention import BatchLayout, SliceLayout, TorchPagedAttention

RAGGED = [(0, 1), (37, 1), (0, 5), (64, 1), (10, 21)]
"""Start and count of slices: single tokens and longer slices in one batch, at and off page ends."""


def spoil(tensors):
    """Leave not-a-number wherever a page was never written."""
    for tensor in tensors:
        if tensor.dtype.is_floating_point and tensor.element_size() > 1:
            tensor.fill_(float("nan"))
        else:
            tensor.view(torch.uint8).fill_(0x7F)  # not a number in fp8


class Batch:
    """Slices of sequences whose earlier tokens lie in the pages of an oracle already."""

    def __init__(self, config, slices, page, dtype, device, kv_dtype="auto", seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.config, self.page, self.dtype, self.device = config, page, dtype, device
        self.slices, self.kv_dtype = slices, kv_dtype
        needed = [-(-(start + count) // page) for start, count in slices]
        self.pages = sum(needed) + 2
        places = random.Random(seed).sample(range(self.pages), self.pages)
        self.tables = [[places.pop() for _ in range(count)] for count in needed]
        heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
        tokens = sum(count for _, count in slices)
        self.heads = torch.randn(tokens, heads + 2 * kv, dim, generator=generator)
        self.heads = self.heads.to(dtype).to(device)
        self.oracle = TorchPagedAttention(config, self.pages, page, dtype, device, kv_dtype)
        spoil(self.oracle.page_tensors)
        for (start, _), table in zip(slices, self.tables, strict=True):
            if start:
                past = torch.randn(2, start, kv, dim, generator=generator).to(dtype).to(device)
                slots = self.oracle._pool.slots(BatchLayout((SliceLayout(0, start, table),)))
                for layer in range(config.num_layers):
                    self.oracle._pool.store(layer, slots, *past)

    @property
    def layout(self):
        """The batch as attention is told of it."""
        pieces = zip(self.slices, self.tables, strict=True)
        return BatchLayout(tuple(SliceLayout(*piece, table) for piece, table in pieces))

    def split(self, heads):
        """Return queries, keys and values."""
        kv = self.config.num_kv_heads
        return heads.tensor_split((heads.shape[1] - 2 * kv, heads.shape[1] - kv), dim=1)

    def fill(self, attention):
        """Bring an attention's pages to what the oracle's hold before the step."""
        for mine, its in zip(self.oracle.page_tensors, attention.page_tensors, strict=True):
            its.view(torch.uint8).copy_(mine.view(torch.uint8))

    def exact(self, attention, layer, q):
        """Attend ``q`` over what ``attention``'s pages hold now, in fp64."""
        window = self.config.windows[layer]
        group = self.config.num_heads // self.config.num_kv_heads
        rows, first = [], 0
        for (start, count), table in zip(self.slices, self.tables, strict=True):
            end = start + count
            k, v = (
                side[:, :end].repeat_interleave(group, 0)
                for side in self.read(attention, layer, table)
            )
            query = torch.arange(start, end, device=q.device)[:, None]
            key = torch.arange(end, device=q.device)
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            own = q[first : first + count].double().transpose(0, 1)
            scores = own @ k.transpose(1, 2) / own.shape[2] ** 0.5
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            rows.append((weights @ v).transpose(0, 1))
            first += count
        return torch.cat(rows)

    def read(self, attention, layer, table):
        """Return keys and values ``[kv heads, tokens, head dim]`` of a table's pages in fp64."""
        kv, *scales = (tensor[layer].double()[:, table] for tensor in attention.page_tensors)
        wide = kv if not scales else kv * scales[0].unsqueeze(-1)
        return wide.transpose(1, 2).flatten(2, 3)


def off(result, exact):
    """The largest error, relative to the largest number."""
    return float((result.double() - exact).abs().max() / exact.abs().max())
