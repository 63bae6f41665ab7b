"""The file tier: found again by content, whole or not at all, within its limit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.tiers.archive import Archive, weights_fingerprint
from agentrt.engine.tiers.files import FileStore, page_names
from agentrt.engine.tiers.host import HostTier
from agentrt.errors import ConfigError, InternalError
from agentrt.scheduling.plan import Transfer
from tests.engine.test_tiers import pool_tensors, settled

PAGE = 100
HEAD = 34
MODEL = b"m" * 32
KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6)


def payload(number):
    return bytes([number]) * PAGE


def store(directory, pages=10):
    return FileStore(directory, pages * (PAGE + HEAD), PAGE)


class TestNames:
    @settings(deadline=None)
    @given(KEYS, KEYS)
    def test_two_pages_have_one_name_if_all_tokens_up_to_their_end_agree(self, left, right):
        ours, theirs = page_names(MODEL, left), page_names(MODEL, right)
        for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            assert (one == other) == (left[: at + 1] == right[: at + 1])

    def test_other_models_have_other_names_and_numpy_tokens_the_same(self):
        keys = [(1, 2), (3, 4)]
        assert page_names(MODEL, keys) != page_names(b"n" * 32, keys)
        assert page_names(MODEL, [tuple(np.array(key)) for key in keys]) == page_names(MODEL, keys)

    def test_a_fingerprint_is_of_weights_and_settings(self, tmp_path):
        file = tmp_path / "model.safetensors"
        file.write_bytes(bytes(10_000_000))
        first = weights_fingerprint(tmp_path, "float32")
        assert first == weights_fingerprint(tmp_path, "float32")
        assert first != weights_fingerprint(tmp_path, "bfloat16")
        changed = bytearray(10_000_000)
        changed[5_000_000] = 1
        file.write_bytes(changed)
        assert first != weights_fingerprint(tmp_path, "float32")


class TestFileStore:
    def test_what_was_written_is_found_after_a_restart(self, tmp_path):
        first = store(tmp_path)
        assert first.write("a", payload(1))
        assert first.write("b", payload(2))
        again = store(tmp_path)
        assert "a" in again
        assert again.read("b") == payload(2)
        assert again.read("c") is None
        figures = again.statistics()
        assert (figures.files, figures.bytes, figures.read) == (2, 2 * (PAGE + HEAD), 1)

    @pytest.mark.parametrize("damage", ["flip", "cut", "grow", "magic", "length", "empty"])
    def test_a_damaged_file_is_removed_and_counted(self, tmp_path, damage, caplog):
        files = store(tmp_path)
        files.write("a", payload(1))
        path = tmp_path / "a.kv"
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[-5] ^= 1
        elif damage in ("magic", "length"):
            data[3 if damage == "magic" else 17] ^= 1
        changed = {"cut": data[:-1], "grow": data + b"x", "empty": b""}.get(damage, data)
        path.write_bytes(changed)
        again = store(tmp_path)
        assert again.read("a") is None
        assert not path.exists()
        assert "a" not in again
        assert again.statistics().corrupt == 1
        assert again.statistics().files == 0
        assert "damaged" in caplog.text

    def test_the_limit_holds_and_what_was_used_longest_ago_goes(self, tmp_path):
        files = store(tmp_path, pages=3)
        for name in "abc":
            files.write(name, payload(ord(name)))
        assert files.read("a")
        files.write("d", payload(4))
        assert [name for name in "abcd" if name in files] == ["a", "c", "d"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.kv", "c.kv", "d.kv"]
        assert files.statistics().removed == 1

    def test_a_smaller_limit_takes_effect_at_the_next_start(self, tmp_path):
        files = store(tmp_path)
        for at, name in enumerate("abcd"):
            files.write(name, payload(at))
            os.utime(tmp_path / f"{name}.kv", (at, at))
        again = store(tmp_path, pages=2)
        assert [name for name in "abcd" if name in again] == ["c", "d"]

    def test_writing_twice_writes_once(self, tmp_path):
        files = store(tmp_path)
        assert files.write("a", payload(1))
        assert files.write("a", payload(1))
        assert files.statistics().written == 1

    def test_other_files_are_left_alone(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / ".x.part").write_text("half")
        files = store(tmp_path, pages=1)
        files.write("a", payload(1))
        files.write("b", payload(2))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.kv", "notes.txt"]

    def test_a_file_that_somebody_removed_is_just_missing(self, tmp_path):
        files = store(tmp_path)
        files.write("a", payload(1))
        (tmp_path / "a.kv").unlink()
        assert files.read("a") is None
        assert "a" not in files
        assert files.statistics().corrupt == 0

    def test_a_disk_that_takes_nothing_is_said_and_counted(self, tmp_path, caplog):
        files = store(tmp_path / "pages")
        (tmp_path / "pages").rmdir()
        assert not files.write("a", payload(1))
        assert files.statistics().refused == 1
        assert "is not kept" in caplog.text

    def test_settings_that_cannot_work_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="hold no page"):
            FileStore(tmp_path, PAGE, PAGE)
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="cannot be kept"):
            store(tmp_path / "file")

    def test_killed_at_any_moment_what_is_there_is_whole(self, tmp_path):
        script = textwrap.dedent(f"""
            import pathlib, sys
            from agentrt.engine.tiers.files import FileStore
            files = FileStore(pathlib.Path({str(tmp_path)!r}), 1 << 30, 1 << 20)
            print("ready", flush=True)
            for number in range(100_000):
                files.write(str(number), bytes([number % 251]) * (1 << 20))
        """)
        for _ in range(3):
            child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
            assert child.stdout.readline() == b"ready\n"
            threading.Event().wait(0.15)
            child.kill()
            child.communicate()
            files = FileStore(tmp_path, 1 << 30, 1 << 20)
            for path in tmp_path.iterdir():
                number = int(path.stem)
                assert files.read(path.stem) == bytes([number % 251]) * (1 << 20)
                path.unlink()
            assert files.statistics().corrupt == 0


class TestArchive:
    def tier(self, directory, pool, pages=6):
        files = FileStore(directory, 1 << 20, sum(part[:, :, 0].nbytes for part in pool))
        tier = HostTier(pool, pages, archive=Archive(files, MODEL))
        tier.start(lambda: None)
        return tier, files

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_pages_go_to_files_and_come_back(self, tmp_path, dtype):
        pool = pool_tensors(4, dtype)
        before = [part.clone() for part in pool]
        tier, _ = self.tier(tmp_path, pool)
        keys = [(1,), (2,), (3,)]
        tier.begin([Transfer(1, "store", (0, 1, 2), (3, 4, 5))])
        settled(tier, 1)
        tier.evicted(keys, (4, 5))
        tier.close(save=False)
        for part in pool:
            part.zero_()
        tier, files = self.tier(tmp_path, pool)
        names = page_names(MODEL, keys)
        assert [name in files for name in names] == [False, True, True]
        tier.begin([Transfer(1, "fetch", (), (0, 1), tuple(names[1:]))])
        assert settled(tier, 1) == ([1], [])
        tier.begin([Transfer(2, "load", (1, 2), (0, 1))])
        settled(tier, 1)
        tier.close(save=False)
        for part, old in zip(pool, before, strict=True):
            assert torch.equal(part[:, :, 1:3], old[:, :, 1:3])

    def test_the_end_saves_what_host_memory_holds(self, tmp_path):
        tier, files = self.tier(tmp_path, pool_tensors(4))
        tier.keep_in_files(lambda: [([(1,), (2,)], [0, 1]), ([(1,), (5,)], [2])])
        tier.close(save=True)
        tier.close(save=True)
        assert len(list(tmp_path.iterdir())) == 3
        assert page_names(MODEL, [(1,), (5,)])[1] in files
        assert tier.statistics().files.written == 3

    def test_a_read_of_a_damaged_file_fails_as_a_whole(self, tmp_path):
        pool = pool_tensors(4)
        tier, _ = self.tier(tmp_path, pool)
        tier.evicted([(1,), (2,)], (0, 1))
        tier.close(save=False)
        names = page_names(MODEL, [(1,), (2,)])
        (tmp_path / f"{names[1]}.kv").write_bytes(b"nonsense")
        tier, _ = self.tier(tmp_path, pool)
        tier.begin([Transfer(1, "fetch", (), (2, 3), tuple(names))])
        assert settled(tier, 1) == ([], [1])
        tier.close(save=False)
        assert tier.statistics().files.corrupt == 1
        assert tier.statistics().failed == 1

    def test_too_much_at_once_is_not_kept_and_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr("agentrt.engine.tiers.archive.BACKLOG_BYTES", 250)
        files = store(tmp_path)
        archive = Archive(files, MODEL)
        archive.keep(["a", "b", "c"], [payload(1), payload(2), payload(3)])
        archive.start()
        archive.close(10.0)
        assert [name in files for name in "abc"] == [True, True, False]
        assert files.statistics().refused == 1

    def test_without_files_nothing_can_be_fetched(self):
        tier = HostTier(pool_tensors(4), 4)
        with pytest.raises(InternalError, match="no files"):
            tier.begin([Transfer(1, "fetch", (), (0,), ("a",))])
