"""Distinct and frequent events of a log."""


def unique(events):
    """Return each event once, in the order of its first appearance."""
    seen = []
    for event in events:
        if event not in seen:
            seen.append(event)
    return seen


def top(events, count):
    """Return the `count` most frequent events as (event, how often), equal counts by name."""
    totals = [(event, events.count(event)) for event in unique(events)]
    totals.sort(key=lambda pair: (-pair[1], pair[0]))
    return totals[:count]
