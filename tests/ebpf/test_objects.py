"""The shipped BPF objects are what their sources give, and load where they should."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agentrt.ebpf import BpfObject, library
from agentrt.errors import BackendUnavailable

EBPF = Path(__file__).resolve().parents[2] / "ebpf"
SHIPPED = sorted(file.name for file in (EBPF / "objects").glob("*.bpf.o"))


def compare(shipped: Path, rebuilt: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EBPF / "compare.py"), "compare", str(shipped), str(rebuilt)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_every_source_has_its_object():
    sources = sorted(f"{file.name.removesuffix('.c')}.o" for file in EBPF.glob("*.bpf.c"))
    assert sources == SHIPPED


@pytest.mark.parametrize("source", sorted(EBPF.glob("*.bpf.c")), ids=lambda file: file.name)
def test_a_source_says_its_licence(source: Path):
    text = source.read_text()
    assert text.startswith("// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0\n")
    assert 'LICENSE[] SEC("license") = "GPL";' in text


@pytest.mark.skipif(not shutil.which("clang"), reason="clang is not installed")
def test_the_objects_are_what_the_sources_give():
    made = subprocess.run(
        ["make", "-C", str(EBPF), "check", f"PYTHON={sys.executable}"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert made.returncode == 0, made.stderr + made.stdout
    assert "objects, built by" in made.stdout


class TestCompare:
    """The comparison itself: it must see each way in which objects can be stale."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[Path, Path]:
        for name in ("shipped", "rebuilt"):
            shutil.copytree(EBPF / "objects", tmp_path / name)
        return tmp_path / "shipped", tmp_path / "rebuilt"

    def edit(self, directory: Path, **changes: object) -> None:
        built = json.loads((directory / "BUILT").read_text())
        (directory / "BUILT").write_text(json.dumps({**built, **changes}))

    def test_equal(self, pair: tuple[Path, Path]):
        assert compare(*pair).returncode == 0

    def test_changed_source(self, pair: tuple[Path, Path]):
        sources = json.loads((pair[1] / "BUILT").read_text())["sources"]
        self.edit(pair[1], sources={**sources, "events.h": "0"})
        done = compare(*pair)
        assert done.returncode == 1
        assert "events.h has changed" in done.stderr
        assert "make -C ebpf" in done.stderr

    def test_swapped_object(self, pair: tuple[Path, Path]):
        shutil.copy(pair[0] / "egress.bpf.o", pair[0] / "sensors.bpf.o")
        assert "not those that BUILT names" in compare(*pair).stderr

    def test_another_compiler_is_compared_by_what_objects_offer(self, pair: tuple[Path, Path]):
        self.edit(pair[1], compiler="clang 99")
        done = compare(*pair)
        assert done.returncode == 0
        assert "alike in programs and maps" in done.stdout

    def test_another_compiler_and_other_programs(self, pair: tuple[Path, Path]):
        shutil.copy(pair[1] / "egress.bpf.o", pair[1] / "sensors.bpf.o")
        objects = json.loads((pair[1] / "BUILT").read_text())["objects"]
        objects["sensors.bpf.o"] = objects["egress.bpf.o"]
        self.edit(pair[1], compiler="clang 99", objects=objects)
        assert "sensors.bpf.o offers other programs" in compare(*pair).stderr


@pytest.mark.requires_bpf
class TestLoader:
    def test_maps(self):
        with BpfObject("sensors") as loaded:
            roots = loaded.maps["roots"]
            for number in range(3):
                roots.set(struct.pack("=Q", number), struct.pack("=I", number + 10))
            assert roots.get(struct.pack("=Q", 2)) == struct.pack("=I", 12)
            assert sorted(roots.keys()) == [struct.pack("=Q", number) for number in range(3)]
            assert roots.delete(struct.pack("=Q", 2))
            assert not roots.delete(struct.pack("=Q", 2))
            assert roots.get(struct.pack("=Q", 2)) is None

    def test_wrong_sizes_are_refused(self):
        with BpfObject("sensors") as loaded:
            with pytest.raises(ValueError, match="a key has 8 bytes"):
                loaded.maps["roots"].get(b"short")
            with pytest.raises(ValueError, match="a value has 4 bytes"):
                loaded.maps["roots"].set(bytes(8), bytes(8))

    def test_a_full_map_is_an_error(self):
        with BpfObject("sensors") as loaded:
            for number in range(256):
                loaded.maps["roots"].set(struct.pack("=Q", number), bytes(4))
            with pytest.raises(OSError, match="roots"):
                loaded.maps["roots"].set(struct.pack("=Q", 256), bytes(4))

    def test_skipped_programs_are_not_there(self):
        with BpfObject("sensors", skip=frozenset({"on_page"})) as loaded:
            assert "on_page" not in loaded.programs
            assert "on_exec" in loaded.programs

    def test_nothing_stays_open(self):
        # the first load opens the kernel's BTF for good
        BpfObject("sensors").close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with BpfObject("sensors") as loaded:
                loaded.attach("on_exec")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_what_does_not_load_says_why(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(library().call, "bpf_object__load", lambda pointer: -22)
        with pytest.raises(BackendUnavailable, match="sensors cannot be used: Invalid argument"):
            BpfObject("sensors")
