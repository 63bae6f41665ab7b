"""The index of what was read, against a search through everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine import ngram
from agentrt.engine.ngram import LONGEST_MATCH, Match, NgramIndex


def search(ids):
    """Return the longest of the latest matches of at least two tokens, by trying every place."""
    last = len(ids) - 1
    places = []
    for place in range(last - 1, 0, -1):
        length = 0
        while length < min(LONGEST_MATCH, place + 1) and ids[place - length] == ids[last - length]:
            length += 1
        if length >= 2:
            places.append(Match(place + 1, length))
    return max(places[: ngram._PLACES], key=lambda m: (m.length, m.next), default=None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.lists(st.integers(0, 3), max_size=5)))
def test_it_finds_what_a_full_search_finds_while_the_list_grows(begin, pieces):
    index, ids = NgramIndex(), list(begin)
    assert index.find(ids) == search(ids)
    for piece in pieces:
        ids += piece
        assert index.find(ids) == search(ids)


def test_the_longest_match_wins_then_the_latest():
    index = NgramIndex()
    assert index.find([1, 2, 3, 9, 2, 3, 8, 1, 2, 3]) == Match(3, 3)
    assert NgramIndex().find([1, 2, 7, 1, 2, 8, 1, 2]) == Match(5, 2)


def test_nothing_is_found_in_what_is_too_short_or_new():
    for ids in ([], [1], [1, 1], [1, 2], [1, 2, 3, 4]):
        assert NgramIndex().find(ids) is None
    assert NgramIndex().find([1, 1, 1]) == Match(2, 2)


def test_a_long_match_counts_as_long_as_any():
    text = list(range(100))
    assert NgramIndex().find([*text, 7, *text]) == Match(100, LONGEST_MATCH)
