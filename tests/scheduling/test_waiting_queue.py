"""An order that changes as a whole: every turn is ranked anew, once for each change."""

from __future__ import annotations

from types import SimpleNamespace

from agentrt.scheduling.queue import WaitingQueue


class Order:
    """Ranks by size, or the other way round."""

    def __init__(self):
        self.epoch = 0
        self.asked = 0

    def __call__(self, turn):
        self.asked += 1
        return turn.size if self.epoch % 2 == 0 else -turn.size


def test_ranks_follow_the_epoch():
    order = Order()
    queue = WaitingQueue(order, 600.0, epoch=lambda: order.epoch)
    turns = [_turn(at, size) for at, size in enumerate((3, 1, 2))]
    for turn in turns:
        queue.add(turn)
    assert _sizes(queue) == [1, 2, 3]
    assert order.asked == 3
    order.epoch += 1
    assert _sizes(queue) == [3, 2, 1]
    assert _sizes(queue) == [3, 2, 1]
    assert order.asked == 6  # once more for each, and not at every look
    queue.remove(turns[0])
    order.epoch += 1
    assert _sizes(queue) == [1, 2]


def _turn(sequence, size):
    # Turns are told apart by identity, as the scheduler's are.
    made = type("Turn", (SimpleNamespace,), {"__hash__": object.__hash__})
    return made(sequence=sequence, submitted=float(sequence), size=size)


def _sizes(queue):
    return [turn.size for turn in queue.ranked(10.0)]
