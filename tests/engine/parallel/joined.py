"""Ranks as threads of one process, over real gloo."""

from __future__ import annotations

import datetime
import threading

import torch
import torch.distributed as dist

from agentrt.engine.parallel.group import TorchGroup

SECONDS = 20


def together(directory, size, work):
    """Run ``work(group)`` in a thread for each rank; return what they returned, rank by rank."""
    results, errors = [None] * size, []

    def run(rank):
        try:
            store = dist.FileStore(str(directory / "meeting"), size)
            limit = datetime.timedelta(seconds=SECONDS)
            joined = dist.ProcessGroupGloo(store, rank, size, limit)
            results[rank] = work(TorchGroup(rank, size, torch.device("cpu"), joined))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results
