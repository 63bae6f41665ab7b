"""Pages between the device and host memory: bit by bit, in order with what the engine launches."""

from __future__ import annotations

import pytest
import torch

from agentrt.engine.tiers.copiers import CudaCopier, MemoryCopier
from agentrt.engine.tiers.groups import CopyGroup, copy_groups
from agentrt.engine.tiers.host import HostTier
from agentrt.scheduling.plan import Transfer

LAYERS, PAGES, HOST = 3, 40, 24


def pool_of(device, dtype=torch.bfloat16):
    shape = (LAYERS, 2, PAGES, 2, 16, 8)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scales = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(2))
    return (drawn.to(dtype).to(device), scales.to(device))


def raw(part):
    return part.cpu().contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn])
def test_what_comes_back_is_what_went(device, dtype):
    pool = pool_of(device, dtype)
    kept = [raw(part) for part in pool]
    tier = HostTier(pool, HOST)
    assert all(part.is_pinned() for part in tier.host)
    pages, places = (7, 3, 31, 12, 0), (5, 6, 20, 7, 1)
    tier.copy_now(Transfer(1, "store", pages, places))
    for part in pool:
        part.view(torch.uint8).zero_()
    tier.copy_now(Transfer(2, "load", pages, places))
    for part, before in zip(pool, kept, strict=True):
        assert torch.equal(raw(part)[:, :, list(pages)], before[:, :, list(pages)])
        others = [page for page in range(PAGES) if page not in pages]
        assert not raw(part)[:, :, others].any()
    tier.close()


def test_both_copiers_leave_the_same_on_the_host(device):
    there, here = pool_of(device), pool_of("cpu")
    hosts = [
        [torch.zeros((HOST, *part.shape[:2], *part.shape[3:]), dtype=part.dtype) for part in here]
        for _ in range(2)
    ]
    pinned = [part.pin_memory() for part in hosts[0]]
    cuda, memory = CudaCopier(there, pinned), MemoryCopier(here, hosts[1])
    pages, places = [9, 10, 11, 30], [3, 4, 5, 17]
    for copier in (cuda, memory):
        copier.begin(copier.mark())
        for group in copy_groups(pages, places, most=8, straight=copier.straight):
            copier.store(group)
        copier.finish()
    for one, other in zip(pinned, hosts[1], strict=True):
        assert torch.equal(raw(one), raw(other))


def test_a_copy_waits_for_what_was_launched_before_its_mark(device):
    pool = pool_of(device)
    host = [
        torch.zeros((HOST, *part.shape[:2], *part.shape[3:]), dtype=part.dtype).pin_memory()
        for part in pool
    ]
    copier = CudaCopier(pool, host)
    busy = torch.randn(4096, 4096, device=device)
    for _ in range(20):  # some milliseconds that the host does not wait for
        busy = busy @ busy / 64
    pool[0].fill_(3.0)
    copier.begin(copier.mark())
    copier.store(CopyGroup(0, (1, 2)))
    copier.finish()
    assert (host[0][:2] == 3.0).all()
