"""The watcher: descriptors and timers on one thread."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Iterator

import pytest

from agentrt.resources.watch import Watcher

WAIT = 20.0


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def test_a_ready_descriptor_calls_back(watcher: Watcher):
    reader, writer = os.pipe()
    seen = threading.Event()

    def ready() -> None:
        os.read(reader, 1)
        seen.set()

    watcher.add(reader, select.EPOLLIN, ready)
    os.write(writer, b"x")
    assert seen.wait(WAIT)
    watcher.remove(reader)
    os.write(writer, b"x")
    os.close(reader)
    os.close(writer)


def test_a_timer_repeats_until_it_is_cancelled(watcher: Watcher):
    count = 0
    thrice = threading.Event()

    def tick() -> None:
        nonlocal count
        count += 1
        if count == 3:
            thrice.set()

    receipt = watcher.every(0.005, tick)
    assert thrice.wait(WAIT)
    watcher.cancel(receipt)
    after = count
    other = threading.Event()
    watcher.every(0.02, other.set)
    assert other.wait(WAIT)
    assert count == after


def test_a_callback_that_fails_does_not_end_the_others(
    watcher: Watcher, caplog: pytest.LogCaptureFixture
):
    def fail() -> None:
        raise RuntimeError("broken source")

    good = threading.Event()
    with caplog.at_level(logging.ERROR):
        watcher.every(0.005, fail)
        watcher.every(0.02, good.set)
        assert good.wait(WAIT)
    assert "broken source" in caplog.text


def test_closing_from_a_callback_and_twice():
    watcher = Watcher()
    closed = threading.Event()

    def close() -> None:
        watcher.close()
        closed.set()

    watcher.every(0.001, close)
    assert closed.wait(WAIT)
    watcher.close()
