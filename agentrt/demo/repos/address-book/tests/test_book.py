import os
import tempfile
import unittest

from book.reader import read_contacts
from book.search import find

TEXT = "name;email\nZo\u00eb Br\u00fbl;zoe@example.org\nAnna Stra\u00dfe;anna@example.org\n"


class BookTest(unittest.TestCase):
    def read(self, data):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "export.csv")
            with open(path, "wb") as file:
                file.write(data)
            return read_contacts(path)

    def test_accents_survive(self):
        self.assertEqual(self.read(TEXT.encode())[0], ("Zo\u00eb Br\u00fbl", "zoe@example.org"))

    def test_byte_order_mark(self):
        self.assertEqual(self.read(b"\xef\xbb\xbf" + TEXT.encode()), self.read(TEXT.encode()))

    def test_windows_line_ends(self):
        self.assertEqual(len(self.read(TEXT.replace("\n", "\r\n").encode())), 2)

    def test_find_ignores_case(self):
        self.assertEqual(len(find(self.read(TEXT.encode()), "ZO\u00cb")), 1)

    def test_find_combining_marks(self):
        self.assertEqual(len(find(self.read(TEXT.encode()), "zoe\u0308 bru\u0302l")), 1)

    def test_find_sharp_s(self):
        self.assertEqual(len(find(self.read(TEXT.encode()), "STRASSE")), 1)

    def test_plain_letters_are_not_accents(self):
        self.assertEqual(find(self.read(TEXT.encode()), "zoe"), [])


if __name__ == "__main__":
    unittest.main()
