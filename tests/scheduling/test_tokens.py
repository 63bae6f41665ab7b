"""Token sources: page keys agree exactly where the tokens do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentrt.scheduling.tokens import TokenList, VirtualTokens


def agreeing_pages(left, right, page: int) -> int:
    count = min(len(left), len(right)) // page
    ours, theirs = left.page_keys(page, count), right.page_keys(page, count)
    return next((i for i in range(count) if ours[i] != theirs[i]), count)


def test_real_tokens_key_by_content_and_grow():
    tokens = TokenList([1, 2, 3])
    assert list(tokens.page_keys(2, 1)) == [(1, 2)]
    tokens.extend([4])
    assert list(tokens.page_keys(2, 2)) == [(1, 2), (3, 4)]
    assert list(tokens.page_keys(4, 1)) == [(1, 2, 3, 4)]
    assert list(tokens.ids) == [1, 2, 3, 4]


def test_virtual_prompt_that_continues_shares_what_it_reuses():
    first = VirtualTokens.first(10, "t0")
    first.extend(range(5))
    assert len(first) == 15
    second = first.follow(15, 20, "t1")
    assert agreeing_pages(first, second, 4) == 3
    assert agreeing_pages(first, first.follow(8, 20, "t2"), 4) == 2
    assert agreeing_pages(first, first.follow(0, 20, "t3"), 4) == 0


def test_virtual_prompt_shorter_than_its_history():
    first = VirtualTokens.first(10, "t0")
    cut = first.follow(10, 6, "t1")
    assert len(cut) == 6
    cut.extend(range(6))
    assert agreeing_pages(first, cut, 2) == 3


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30), st.integers(0, 12)), max_size=6),
    st.sampled_from([1, 3, 4, 16]),
)
def test_virtual_tokens_agree_with_real_ones(turns, page):
    """The same edits on numbers and on real lists give the same shared pages, pairwise."""
    virtual, real = [VirtualTokens.first(9, -1)], [[(-1, i) for i in range(9)]]
    for tag, (reused, new, output) in enumerate(turns):
        kept = min(reused, len(real[-1]))
        if page > 3:
            virtual[-1].page_keys(page, len(virtual[-1]) // page)
        tokens = virtual[-1].follow(reused, kept + new, tag)
        tokens.extend(range(output))
        virtual.append(tokens)
        real.append(real[-1][:kept] + [(tag, kept + i) for i in range(new + output)])
        assert len(tokens) == len(real[-1])
    for a in range(len(real)):
        for b in range(len(real)):
            common = min(len(real[a]), len(real[b]))
            same = next((i for i in range(common) if real[a][i] != real[b][i]), common)
            assert agreeing_pages(virtual[a], virtual[b], page) == same // page
