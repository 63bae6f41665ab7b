"""Pages are numbered from 1; an empty list has one empty page."""


def page_count(total, size):
    """Return how many pages `total` items need."""
    return max(1, total // size)


def page(items, number, size):
    """Return the items of page `number`."""
    if not 1 <= number <= page_count(len(items), size):
        raise LookupError(f"there is no page {number}")
    start = (number - 1) * size + 1
    return items[start : start + size]


def links(current, last, width=2):
    """Return the page numbers to show: `width` neighbours on each side, first and last."""
    near = range(max(1, current - width), min(last, current + width))
    return sorted({1, *near})
