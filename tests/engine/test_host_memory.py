"""Host memory for KV: zeroed, cut into parts, in huge pages where there are any."""

from __future__ import annotations

import logging

import pytest
import torch

from agentrt.engine.tiers import memory
from agentrt.engine.tiers.memory import HUGE, HostMemory, huge_bytes
from agentrt.errors import ConfigError

CPU = torch.device("cpu")

SMAPS = """\
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
Size:               8192 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000800000-7f0000900000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
"""


def test_parts_are_zero_apart_and_aligned():
    made = HostMemory([10, 5000, 3 * HUGE], CPU)
    assert [len(part) for part in made.parts] == [10, 5000, 3 * HUGE]
    assert made.parts[0].data_ptr() % HUGE == 0
    assert all(part.data_ptr() % 4096 == 0 for part in made.parts)
    for number, part in enumerate(made.parts):
        assert not part.any()
        part.fill_(number + 1)
    assert [int(part.unique()) for part in made.parts] == [1, 2, 3]
    assert not made.pinned
    made.release()


def test_the_kernel_is_asked_for_huge_pages_and_the_log_says_what_came(caplog):
    with caplog.at_level(logging.INFO, memory.__name__):
        made = HostMemory([4 * HUGE], CPU)
    place = made.parts[0].data_ptr()
    assert huge_bytes(place, 4 * HUGE) in range(0, 6 * HUGE + 1, HUGE)
    assert "8 MiB, " in caplog.text
    with open("/proc/self/smaps") as lines:
        flags = ""
        for line in lines:
            first, _, last = line.partition(" ")[0].partition("-")
            if last and not last.endswith(":") and int(first, 16) <= place < int(last, 16):
                flags = next(each for each in lines if each.startswith("VmFlags"))
    assert " hg" in flags


def test_huge_bytes_counts_the_mappings_that_are_touched(tmp_path):
    file = tmp_path / "smaps"
    file.write_text(SMAPS)
    assert huge_bytes(0x7F0000000000, 4096, file) == 4 << 20
    assert huge_bytes(0x7F00007FF000, 8192, file) == 6 << 20
    assert huge_bytes(0x7E0000000000, 4096, file) == 0
    assert huge_bytes(0, 1, tmp_path / "none") == 0


def test_what_cannot_be_had_is_refused():
    with pytest.raises(ConfigError, match=r"cannot be had.*smaller --host-kv"):
        HostMemory([1 << 60], CPU)


class Runtime:
    """Stands for the CUDA runtime, of which only two functions are called."""

    def __init__(self, code):
        self.code, self.calls = code, []

    def cudaHostRegister(self, address, size, flags):
        self.calls.append(("register", address, size, flags))
        return self.code

    def cudaHostUnregister(self, address):
        self.calls.append(("unregister", address))
        return 0


def test_for_cuda_it_is_registered_once_and_let_go_once(monkeypatch):
    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    made = HostMemory([100], torch.device("cuda"))
    assert made.pinned
    made.release()
    made.release()
    place = made.parts[0].data_ptr()
    assert runtime.calls == [("register", place, 4096, 0), ("unregister", place)]


def test_where_it_cannot_be_registered_torch_pins_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(2))
    zeros, asked = torch.zeros, []

    def pinning(*args, pin_memory, **named):
        asked.append(pin_memory)
        return zeros(*args, **named)

    monkeypatch.setattr(torch, "zeros", pinning)
    made = HostMemory([100], torch.device("cuda"))
    assert asked == [True]
    assert "CUDA error 2" in caplog.text
    assert not made.parts[0].any()
    made.release()
