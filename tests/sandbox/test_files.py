"""Files of a sandbox, read and written from outside, never led out of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentrt.errors import OutputLimitExceeded
from agentrt.sandbox import SandboxSpec
from agentrt.sandbox.files import SandboxFiles

DATA = bytes(range(256)) * 300


@pytest.fixture
async def box(provider):
    async with await provider.create(SandboxSpec()) as made:
        yield made


@pytest.mark.anyio
async def test_round_trip(box):
    for path in ("plain", "deep/down/ there", f"{box.workdir}/absolute", "./a/../dotted", "-dash"):
        await box.write_file(path, DATA)
        assert await box.read_file(path) == DATA
        await box.write_file(path, b"")
        assert await box.read_file(path) == b""
    assert (await box.exec("ls")).stdout.split() == b"-dash a absolute deep dotted plain".split()


@pytest.mark.anyio
async def test_errors_by_name(box):
    await box.exec("mkdir directory; ln -s loop loop")
    with pytest.raises(FileNotFoundError):
        await box.read_file("absent")
    with pytest.raises(FileNotFoundError):
        await box.read_file("")
    for call in (box.read_file("directory"), box.write_file("directory", b"x")):
        with pytest.raises(IsADirectoryError):
            await call
    with pytest.raises((PermissionError, FileNotFoundError)):
        await box.read_file("loop")
    await box.write_file("big", b"x" * 1001)
    with pytest.raises(OutputLimitExceeded):
        await box.read_file("big", limit=1000)
    assert len(await box.read_file("big", limit=1001)) == 1001


@pytest.mark.anyio
async def test_links_do_not_lead_to_our_files(box, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("host secret")
    await box.exec(["sh", "-c", f"ln -s {secret} file; ln -s {tmp_path} directory"])
    for path in ("file", "directory/secret", str(secret), f"../../../../../../..{secret}"):
        # An absolute path may name a place inside as well, the private /tmp for one.
        with pytest.raises((PermissionError, FileNotFoundError)):
            await box.read_file(path)
    refused = 0
    for path in ("file", "directory/new", "directory/deep/new", str(tmp_path / "new")):
        try:
            await box.write_file(path, b"overwritten")
        except (PermissionError, FileNotFoundError):
            refused += 1
    if box.kind == "process":
        assert refused == 4
    assert secret.read_text() == "host secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]


@pytest.mark.anyio
async def test_links_inside_work(box):
    await box.write_file("real/file", b"content")
    await box.exec(f"ln -s real/file relative; ln -s {box.workdir}/real absolute; ln -s .. real/up")
    assert await box.read_file("relative") == b"content"
    assert await box.read_file("absolute/file") == b"content"
    assert await box.read_file("real/up/real/file") == b"content"
    await box.write_file("relative", b"new")
    assert await box.read_file("real/file") == b"new"


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "work" / "inner").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path


def test_special_files_are_refused_without_blocking(tree):
    os.mkfifo(tree / "work" / "pipe")
    (tree / "work" / "zero").symlink_to("/dev/zero")
    files = SandboxFiles({"/work": tree / "work"}, "/work")
    for path in ("pipe", "zero"):
        with pytest.raises(PermissionError):
            files.read(path, 100)
        with pytest.raises(PermissionError):
            files.write(path, b"x")


def test_dot_dot_is_counted_from_the_place(tree):
    files = SandboxFiles({"/work": tree / "work"}, "/work")
    for path in (
        "..",
        "../outside/secret",
        "inner/../../outside/secret",
        "/work/../outside/secret",
    ):
        with pytest.raises(PermissionError):
            files.read(path, 100)


def test_a_component_that_is_a_file(tree):
    (tree / "work" / "file").write_text("x")
    files = SandboxFiles({"/work": tree / "work"}, "/work")
    with pytest.raises(FileNotFoundError):
        files.read("file/below", 100)


@contextmanager
def swapping(swap) -> Iterator[None]:
    """``swap`` runs over and over in a thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            swap()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_swapped_directory_never_leads_out(tree):
    files = SandboxFiles({"/work": tree / "work"}, "/work")
    place, aside, link = tree / "work" / "inner", tree / "aside", tree / "link"
    (place / "secret").write_text("inside")
    link.symlink_to(tree / "outside")

    def swap() -> None:
        place.rename(aside)
        link.rename(place)
        place.rename(link)
        aside.rename(place)

    seen = set()
    with swapping(swap):
        for _ in range(3000):
            try:
                seen.add(files.read("inner/secret", 100))
            except (FileNotFoundError, PermissionError):
                continue
    assert seen == {b"inside"}


def test_a_swapped_file_never_leads_out(tree):
    files = SandboxFiles({"/work": tree / "work"}, "/work")
    place = tree / "work" / "file"

    def swap() -> None:
        (tree / "link").symlink_to(tree / "outside" / "secret")
        (tree / "link").replace(place)
        (tree / "plain").write_text("plain")
        (tree / "plain").replace(place)

    written = 0
    with swapping(swap):
        for _ in range(2000):
            try:
                files.write("file", b"overwritten")
                written += 1
            except PermissionError:
                continue
    assert written
    assert (tree / "outside" / "secret").read_text() == "secret"
