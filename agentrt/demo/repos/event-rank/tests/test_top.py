import unittest

from rank.top import top, unique


class Word(str):
    """A string that counts how often words are compared: work is measured, not time."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Word.compared += 1
        return str.__eq__(self, other)


def words(count):
    return [Word(f"event-{i * 7919 % (count // 2)}") for i in range(count)]


class TopTest(unittest.TestCase):
    def test_unique_keeps_the_order(self):
        self.assertEqual(unique(["stop", "go", "stop", "wait", "go"]), ["stop", "go", "wait"])

    def test_top(self):
        events = "b a c a b d".split()
        self.assertEqual(top(events, 3), [("a", 2), ("b", 2), ("c", 1)])

    def test_top_of_nothing(self):
        self.assertEqual((top([], 3), unique([])), ([], []))

    def test_unique_work_grows_with_the_events(self):
        events = words(1000)
        Word.compared = 0
        unique(events)
        self.assertLess(Word.compared, 20 * len(events))

    def test_top_work_grows_with_the_events(self):
        events = words(1000)
        Word.compared = 0
        top(events, 5)
        self.assertLess(Word.compared, 20 * len(events))


if __name__ == "__main__":
    unittest.main()
