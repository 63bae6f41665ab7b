import unittest

from invoice.bill import lines
from invoice.split import split


class SplitTest(unittest.TestCase):
    def test_even_split(self):
        self.assertEqual(split(900, {"ann": 1, "bob": 2}), {"ann": 300, "bob": 600})

    def test_left_over_cent_goes_to_the_first(self):
        self.assertEqual(split(10000, {"ann": 1, "bob": 1, "cem": 1}), {"ann": 3334, "bob": 3333, "cem": 3333})

    def test_left_over_cents_follow_the_fractions(self):
        self.assertEqual(split(100, {"ann": 1, "bob": 3, "cem": 3}), {"ann": 14, "bob": 43, "cem": 43})

    def test_two_halves_do_not_make_an_extra_cent(self):
        self.assertEqual(split(101, {"ann": 1, "bob": 1}), {"ann": 51, "bob": 50})

    def test_every_total_adds_up(self):
        for total in range(-250, 250):
            shares = split(total, {"ann": 5, "bob": 3, "cem": 7, "dee": 1})
            self.assertEqual(sum(shares.values()), total)

    def test_bad_weights(self):
        for weights in ({}, {"ann": 0}, {"ann": -1, "bob": 2}):
            with self.assertRaises(ValueError):
                split(100, weights)

    def test_bill_shows_the_whole_total(self):
        self.assertEqual(lines(10000, {"ann": 1, "bob": 1, "cem": 1})[-1].split(), ["total", "100.00"])


if __name__ == "__main__":
    unittest.main()
