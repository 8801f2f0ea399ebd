"""The page of the whole stack in headless Chromium: cameras move, and words arrive one by one with their frames."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page

from model.config import PROJECT_ROOT
from tests.live.clients.live_stack import QUESTION, LiveStack, eventually, in_order
from tests.services.page_driver import (
    ANSWERED,
    COUNT_WORDS,
    FRAMES_SHOWN,
    PageSeen,
    browser,
    keep_picture,
    look_behind,
    page_at,
    scrolls_sideways,
)

pytestmark = pytest.mark.timeout(400)
FOLDER = PROJECT_ROOT / "runs" / "page"  # pictures for people to look at; git ignores them


def see_them_move(page: Page, *cameras: str) -> None:
    """Wait until each of these cameras has shown three pictures; others may have stopped."""
    shown: dict[str, set[str]] = {camera: set() for camera in cameras}

    def moved() -> bool:
        for camera, frame_id in page.evaluate(FRAMES_SHOWN).items():
            if camera in shown and frame_id:
                shown[camera].add(frame_id)
        return all(len(frame_ids) >= 3 for frame_ids in shown.values())

    eventually(moved, f"the cameras do not move: {shown}")


def test_ask_on_the_page(live: LiveStack) -> None:
    seen = PageSeen()
    with browser() as chromium, page_at(chromium, live.url, seen) as page:
        see_them_move(page, "door", "yard")
        page.get_by_role("radio", name="Camera door", exact=True).click()
        page.evaluate(COUNT_WORDS)
        page.get_by_label("Your question").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_function("() => window.wordCounts.at(-1) >= 12", timeout=60_000)
        page.get_by_role("button", name="Stop").click()
        page.wait_for_function(ANSWERED)
        word_counts: list[int] = page.evaluate("window.wordCounts")
        look_behind(page, seen, 0)
        look_behind(page, seen, 10)
        keep_picture(page, FOLDER / "live.png")
        assert not scrolls_sideways(page)
    assert word_counts == sorted(word_counts)
    assert len(word_counts) >= 8  # word by word, not all at once
    assert seen.frame_ids[0] != seen.frame_ids[1]  # it looked again while it spoke
    assert in_order(seen.frame_ids)
    assert all(re.fullmatch(r"(\d+ ms|\d\.\d s) old when spoken", age) for age in seen.ages)
    assert seen.problems == []
