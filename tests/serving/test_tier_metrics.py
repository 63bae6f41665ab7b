"""What /metrics says of host memory and files."""

from __future__ import annotations

from agentrt.engine.kv import PageCache
from agentrt.engine.statistics import EngineStatistics
from agentrt.engine.tiers.base import TierStatistics
from agentrt.engine.tiers.files import FileStatistics
from agentrt.scheduling import Scheduler, make_policy
from agentrt.serving.contexts import IndexStatistics
from agentrt.serving.metrics import Metrics, Source


def lines(tier):
    policy = make_policy("fcfs")
    scheduler = Scheduler(PageCache(4, 4, policy.retention.score), policy)
    figures = EngineStatistics("running", scheduler.statistics(), tier=tier)
    index = IndexStatistics(0, 0, 0, 0)
    metrics = Metrics([Source("m", lambda: figures, lambda: index, dict)], lambda: 0.0)
    return metrics.render().decode().splitlines()


def test_tiers_are_told_where_there_are_any():
    files = FileStatistics(files=3, bytes=300, written=4, corrupt=1)
    told = lines(
        TierStatistics(7, stored_pages=5, loaded_bytes=64, loaded_seconds=0.5, files=files)
    )
    for line in (
        "agentrt_host_kv_pages_total 7.0",
        "agentrt_host_kv_stored_pages_total 5.0",
        "agentrt_host_kv_loaded_bytes_total 64.0",
        "agentrt_host_kv_loaded_seconds_total 0.5",
        "agentrt_kv_files 3.0",
        "agentrt_kv_files_bytes 300.0",
        "agentrt_kv_files_written_total 4.0",
        "agentrt_kv_files_corrupt_total 1.0",
        "agentrt_streamed_tokens_total 0.0",
    ):
        assert line in told


def test_without_tiers_nothing_is_said_of_them():
    assert not [line for line in lines(None) if "host_kv" in line or "kv_files" in line]
