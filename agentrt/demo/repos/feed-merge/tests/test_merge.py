import os
import tempfile
import unittest

from feeds.merge import head, merge


class MergeTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.opened = []
        self.addCleanup(lambda: [file.close() for file in self.opened])
        self.paths = [os.path.join(folder.name, name) for name in ("a.log", "b.log")]
        for path, text in zip(self.paths, ("01 red\n04 blue\n", "02 green\n03 grey\n")):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)

    def opener(self, path, **options):
        self.opened.append(open(path, **options))
        return self.opened[-1]

    def still_open(self):
        return [os.path.basename(file.name) for file in self.opened if not file.closed]

    def test_order(self):
        wanted = ["01 red", "02 green", "03 grey", "04 blue"]
        self.assertEqual(list(merge(self.paths, self.opener)), wanted)

    def test_closed_after_the_last_line(self):
        list(merge(self.paths, self.opener))
        self.assertEqual(self.still_open(), [])

    def test_closed_when_the_reader_stops(self):
        lines = merge(self.paths, self.opener)
        next(lines)
        lines.close()
        self.assertEqual(self.still_open(), [])

    def test_head_closes_at_once(self):
        self.assertEqual(head(self.paths, 2, self.opener), ["01 red", "02 green"])
        self.assertEqual(self.still_open(), [])

    def test_closed_when_a_file_is_missing(self):
        with self.assertRaises(FileNotFoundError):
            list(merge([*self.paths, "nowhere.log"], self.opener))
        self.assertEqual(self.still_open(), [])


if __name__ == "__main__":
    unittest.main()
