import threading
import unittest

from tickets.desk import Desk
from tickets.store import MemoryStore


class MeetingStore(MemoryStore):
    """Makes two threads that may load at the same time do so: each waits a moment for the other."""

    def __init__(self):
        super().__init__()
        self.meeting = threading.Barrier(2)

    def load(self):
        number = super().load()
        try:
            self.meeting.wait(timeout=0.2)
        except threading.BrokenBarrierError:
            pass
        return number


def in_threads(*jobs):
    found = []
    threads = [threading.Thread(target=lambda job=job: found.append(job())) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return found


class DeskTest(unittest.TestCase):
    def test_numbers_go_up(self):
        desk = Desk(MemoryStore(41))
        self.assertEqual([desk.issue(), desk.issue()], [42, 43])

    def test_two_counters_never_get_the_same_number(self):
        desk = Desk(MeetingStore())
        self.assertEqual(sorted(in_threads(desk.issue, desk.issue)), [1, 2])

    def test_many_counters(self):
        desk = Desk(MemoryStore())
        rows = in_threads(*[lambda: [desk.issue() for _ in range(50)] for _ in range(8)])
        self.assertEqual(sorted(sum(rows, [])), list(range(1, 401)))

    def test_desks_do_not_wait_for_each_other(self):
        first, second = Desk(MemoryStore()), Desk(MemoryStore())

        class Slow(MemoryStore):
            def load(self):
                self.inner = in_threads(second.issue)
                return super().load()

        first.store = Slow()
        self.assertEqual((first.issue(), first.store.inner), (1, [1]))


if __name__ == "__main__":
    unittest.main()
