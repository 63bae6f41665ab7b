import os
import time
import unittest

from report.weeks import hours_by_week, week_of


class WeekTest(unittest.TestCase):
    def setUp(self):
        # A machine far from UTC; this spelling needs no time zone files.
        old = os.environ.get("TZ")
        os.environ["TZ"] = "TST-9:30"
        time.tzset()
        self.addCleanup(self.restore, old)

    def restore(self, old):
        if old is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = old
        time.tzset()

    def test_plain_week(self):
        self.assertEqual(week_of("2024-02-28T12:00:00"), "2024-W09")

    def test_year_of_the_week(self):
        self.assertEqual(week_of("2024-12-30T12:00:00"), "2025-W01")
        self.assertEqual(week_of("2021-01-03T12:00:00"), "2020-W53")

    def test_offset_moves_the_day(self):
        self.assertEqual(week_of("2024-03-11T08:00:00+11:00"), "2024-W10")
        self.assertEqual(week_of("2024-03-10T23:30:00-01:00"), "2024-W11")

    def test_no_offset_means_utc(self):
        self.assertEqual(week_of("2024-03-11T02:00:00"), "2024-W11")
        self.assertEqual(week_of("2024-03-11T02:00:00Z"), "2024-W11")

    def test_hours_across_offsets(self):
        shifts = [
            ("2024-03-08T09:00:00+01:00", "2024-03-08T09:00:00+00:00"),
            ("2024-03-10T22:00:00", "2024-03-11T08:00:00+11:00"),
            ("2024-03-10T22:00:00", "2024-03-11T06:00:00Z"),
        ]
        self.assertEqual(hours_by_week(shifts), {"2024-W10": 0.0, "2024-W11": 8.0})


if __name__ == "__main__":
    unittest.main()
