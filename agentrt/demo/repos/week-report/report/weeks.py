"""Weeks and hours of time stamps."""

from collections import defaultdict
from datetime import datetime


def parse(stamp):
    """Return the time of an ISO 8601 time stamp, in UTC; no offset means UTC."""
    return datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")


def week_of(stamp):
    """Return the ISO week, such as 2024-W09."""
    return parse(stamp).strftime("%Y-W%V")


def hours_by_week(shifts):
    """Return hours by the week in which each (start, end) shift ended."""
    hours = defaultdict(float)
    for start, end in shifts:
        hours[week_of(end)] += (parse(end) - parse(start)).total_seconds() / 3600
    return dict(hours)
