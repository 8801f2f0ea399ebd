"""Pages asked for, taken and given back; how much memory cameras and dialogs need. No tensor anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import preset
from model.engine.pages import PagePool, num_text_pages

GIB = 2**30


def test_the_lowest_free_page_is_taken_first():
    pages = PagePool(5, page_bytes=1)
    assert pages.reserve("a", 3)
    assert pages.reserve("b", 2)
    assert [pages.allocate(owner) for owner in "aabab"] == [0, 1, 2, 3, 4]
    pages.free("a", 1)
    pages.release("b")
    assert pages.reserve("c", 2)
    assert [pages.allocate("c"), pages.allocate("c"), pages.allocate("a")] == [1, 2, 4]


def test_what_was_promised_is_kept_for_its_owner():
    pages = PagePool(4, page_bytes=1)
    assert pages.reserve("a", 3)
    assert not pages.reserve("b", 2)
    assert pages.num_unreserved == 1
    assert pages.num_held("b") == 0
    assert pages.reserve("b", 1)
    assert pages.reserve("a", 1)  # it needs fewer now
    assert pages.num_unreserved == 2
    assert pages.reserve("b", 3)
    assert not pages.reserve("b", 4)


def test_an_owner_who_asks_for_less_than_it_holds_keeps_what_it_holds():
    pages = PagePool(3, page_bytes=1)
    assert pages.reserve("a", 3)
    assert [pages.allocate("a"), pages.allocate("a")] == [0, 1]
    assert pages.reserve("a", 0)
    assert pages.num_unreserved == 1
    assert pages.reserve("b", 1)
    assert not pages.reserve("b", 2)
    assert pages.allocate("b") == 2


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["ask", "take", "back", "end"]), st.integers(0, 6))
    )
)
def test_no_page_has_two_owners_and_none_is_lost(moves: list[tuple[str, str, int]]):
    pages, held, asked = PagePool(6, page_bytes=1), dict[str, list[int]](), dict[str, int]()
    for owner, move, number in moves:
        if move == "ask" and pages.reserve(owner, number):
            asked[owner] = number
            held.setdefault(owner, [])
        elif move == "take" and owner in held and len(held[owner]) < asked[owner]:
            held[owner].append(pages.allocate(owner))
        elif move == "back" and held.get(owner):
            pages.free(owner, held[owner].pop())
        elif move == "end" and owner in held:
            pages.release(owner)
            del held[owner], asked[owner]
        everywhere = [page for each in held.values() for page in each]
        assert len(set(everywhere)) == len(everywhere) == pages.num_allocated
        assert pages.num_unreserved == 6 - sum(max(asked[each], len(held[each])) for each in held) >= 0


def test_too_little_memory_is_said():
    with pytest.raises(ValueError, match="cache_bytes: got 1000, wanted at least"):
        num_text_pages(preset("7b"), 2, cache_bytes=1000, max_cameras=1, page_tokens=64)
    with pytest.raises(ValueError, match="num_pages: got 0"):
        PagePool(0, page_bytes=1)
