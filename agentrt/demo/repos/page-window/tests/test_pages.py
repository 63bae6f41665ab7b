import unittest

from pager import links, page, page_count


class PageTest(unittest.TestCase):
    def test_count(self):
        cases = {0: 1, 1: 1, 9: 1, 10: 1, 11: 2, 20: 2, 21: 3}
        self.assertEqual({total: page_count(total, 10) for total in cases}, cases)

    def test_first_page_starts_at_the_first_item(self):
        self.assertEqual(page(list("abcdefg"), 1, 3), list("abc"))

    def test_last_page_may_be_short(self):
        self.assertEqual(page(list("abcdefg"), 3, 3), ["g"])

    def test_pages_together_are_the_list(self):
        for total in range(30):
            for size in range(1, 8):
                items = list(range(total))
                found = [x for n in range(page_count(total, size)) for x in page(items, n + 1, size)]
                self.assertEqual(found, items)

    def test_no_such_page(self):
        for number in (0, 4):
            with self.assertRaises(LookupError):
                page(list("abcdefg"), number, 3)


class LinkTest(unittest.TestCase):
    def test_middle(self):
        self.assertEqual(links(10, 20), [1, 8, 9, 10, 11, 12, 20])

    def test_ends(self):
        self.assertEqual(links(1, 9), [1, 2, 3, 9])
        self.assertEqual(links(9, 9), [1, 7, 8, 9])

    def test_single_page(self):
        self.assertEqual(links(1, 1), [1])


if __name__ == "__main__":
    unittest.main()
