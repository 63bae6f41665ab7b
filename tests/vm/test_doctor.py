"""The doctor answers otherwise here than on a machine with v1 controllers: it looks, for real."""

from __future__ import annotations

import pytest

from agentrt.resources import doctor_bpf, doctor_kernel
from agentrt.resources.doctor import Check


@pytest.fixture(scope="module")
def report() -> dict[str, Check]:
    return {probe.name: probe.run() for probe in (*doctor_kernel.PROBES, *doctor_bpf.PROBES)}


@pytest.mark.parametrize(
    "name",
    [
        "kernel",
        "cgroup v2",
        "delegation",
        "controllers",
        "pressure",
        "BTF",
        "libbpf",
        "BPF tracepoints",
        "BPF cgroup hooks",
        "BPF iterators",
        "BPF fentry",
        "BPF lsm",
        "sensors",
        "egress",
        "sched_ext",
        "memcg functions",
    ],
)
def test_works_here(report: dict[str, Check], name: str):
    assert report[name].ok, report[name]
    assert report[name].remedy == ""


def test_what_no_kernel_has_is_not_claimed(report: dict[str, Check]):
    assert not report["memcg struct_ops"].ok
