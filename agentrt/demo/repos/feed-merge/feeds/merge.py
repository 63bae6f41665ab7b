"""Merge sorted text files."""

import heapq


def merge(paths, opener=open):
    """Yield the lines of all files in sorted order, without line ends."""
    files = [opener(path, encoding="utf-8") for path in paths]
    for line in heapq.merge(*files):
        yield line.rstrip("\n")


def head(paths, count, opener=open):
    """Return the first `count` lines of the merged files."""
    lines = []
    for line in merge(paths, opener):
        if len(lines) == count:
            break
        lines.append(line)
    return lines
