"""Pages asked for, taken and given back; how much memory cameras and dialogs need. No tensor anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import preset
from model.engine.pages import Pages, num_text_pages

GIB = 2**30


def test_the_lowest_free_page_is_taken_first():
    pages = Pages(5)
    assert pages.ask("a", 3)
    assert pages.ask("b", 2)
    assert [pages.take(owner) for owner in "aabab"] == [0, 1, 2, 3, 4]
    pages.give_back("a", 1)
    pages.end("b")
    assert pages.ask("c", 2)
    assert [pages.take("c"), pages.take("c"), pages.take("a")] == [1, 2, 4]


def test_what_was_promised_is_kept_for_its_owner():
    pages = Pages(4)
    assert pages.ask("a", 3)
    assert not pages.ask("b", 2)
    assert pages.num_left == 1
    assert pages.held("b") == 0
    assert pages.ask("b", 1)
    assert pages.ask("a", 1)  # it needs fewer now
    assert pages.num_left == 2
    assert pages.ask("b", 3)
    assert not pages.ask("b", 4)


def test_an_owner_who_asks_for_less_than_it_holds_keeps_what_it_holds():
    pages = Pages(3)
    assert pages.ask("a", 3)
    assert [pages.take("a"), pages.take("a")] == [0, 1]
    assert pages.ask("a", 0)
    assert pages.num_left == 1
    assert pages.ask("b", 1)
    assert not pages.ask("b", 2)
    assert pages.take("b") == 2


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["ask", "take", "back", "end"]), st.integers(0, 6))
    )
)
def test_no_page_has_two_owners_and_none_is_lost(moves: list[tuple[str, str, int]]):
    pages, held, asked = Pages(6), dict[str, list[int]](), dict[str, int]()
    for owner, move, number in moves:
        if move == "ask" and pages.ask(owner, number):
            asked[owner] = number
            held.setdefault(owner, [])
        elif move == "take" and owner in held and len(held[owner]) < asked[owner]:
            held[owner].append(pages.take(owner))
        elif move == "back" and held.get(owner):
            pages.give_back(owner, held[owner].pop())
        elif move == "end" and owner in held:
            pages.end(owner)
            del held[owner], asked[owner]
        everywhere = [page for each in held.values() for page in each]
        assert len(set(everywhere)) == len(everywhere) == pages.num_taken
        assert pages.num_left == 6 - sum(max(asked[each], len(held[each])) for each in held) >= 0


def test_too_little_memory_is_said():
    with pytest.raises(ValueError, match="cache_bytes: got 1000, wanted at least"):
        num_text_pages(preset("7b"), 2, cache_bytes=1000, max_cameras=1, page_tokens=64)
    with pytest.raises(ValueError, match="num_pages: got 0"):
        Pages(0)
