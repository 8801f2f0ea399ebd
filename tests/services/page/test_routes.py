"""The page in headless Chromium: cameras move, words come one by one, each shows its frame."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser

from model.config import PROJECT_ROOT
from services.messages.dialog import DialogFailed
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.page_driver import (
    PHONE,
    PageSeen,
    ask,
    browser,
    keep_picture,
    look_behind,
    page_at,
    scrolls_sideways,
    see_cameras_move,
)
from tests.services.served_gateway import Gateway, frame, gateway, jpeg

SENTENCE = "A red bus drives past the old tree. Two children wave at it, and it stops at the corner."
WORDS = re.findall(r"\s?\w+|[.,]", SENTENCE)
CAMERAS = {"front-door": "#2563eb", "yard": "#16a34a", "street-corner": "#f97316"}
QUESTION = "What is happening?"
FOLDER = PROJECT_ROOT / "runs" / "page"  # pictures for people to look at; git ignores them


def publish(store: MemoryFrameStore, stop: threading.Event) -> None:
    """A disc moves through each camera's picture, ten frames a second."""
    number = 10
    while not stop.wait(0.1):
        for camera, colour in CAMERAS.items():
            at = abs(number % 40 - 20) / 20
            picture = jpeg(f"{camera} frame {number}", at, (640, 360), colour)
            store.append(frame(camera, number, time.time() - 0.08, picture), capacity=8)
        number += 1


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    stop = threading.Event()
    with gateway() as served:
        thread = threading.Thread(target=publish, args=(served.store, stop), daemon=True)
        thread.start()
        yield served
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(autouse=True)
def paced_script(served: Gateway) -> None:
    served.decoder.start_over(words=WORDS, pace_s=0.06)


@pytest.mark.parametrize("dark", [False, True])
def test_cameras_move_and_words_show_their_frames(served: Gateway, chromium: Browser, dark: bool) -> None:
    seen = PageSeen()
    with page_at(chromium, served.url, seen, dark=dark) as page:
        see_cameras_move(page, seen, num_cameras=3)
        ask(page, seen, "yard", QUESTION)
        look_behind(page, seen, 0)
        look_behind(page, seen, 12)
        keep_picture(page, FOLDER / f"page-{'dark' if dark else 'light'}.png")
        assert not scrolls_sideways(page)
        assert re.fullmatch(r"\d+ ms", page.locator("#age").inner_text())
        page.keyboard.press("Escape")
        assert page.locator("#popover").is_hidden()
    assert sorted(seen.cameras) == sorted(CAMERAS)
    assert seen.answer == SENTENCE
    assert len(seen.word_counts) >= 10  # word by word, not all at once
    assert seen.word_counts == sorted(seen.word_counts)
    assert seen.frame_ids[0] != seen.frame_ids[1]  # it looked again while it spoke
    assert all(re.fullmatch(r"\d+ ms old when spoken", age) for age in seen.ages)
    assert seen.problems == []
    assert served.decoder.requests[0].camera == "yard"
    assert served.decoder.requests[0].tokens_per_second == 4


def test_a_frame_is_still_shown_when_the_fifo_has_forgotten_it(served: Gateway, chromium: Browser) -> None:
    seen = PageSeen()
    with page_at(chromium, served.url, seen) as page:
        see_cameras_move(page, seen, num_cameras=3)
        ask(page, seen, "front-door", QUESTION)
        look_behind(page, seen, 0)
        # Eight frames are kept: by the end of the answer the first word's frame is long gone.
        assert served.store.picture("front-door", seen.frame_ids[0]) is None
    assert seen.problems == []


def test_it_works_on_a_phone(served: Gateway, chromium: Browser) -> None:
    seen = PageSeen()
    with page_at(chromium, served.url, seen, size=PHONE) as page:
        see_cameras_move(page, seen, num_cameras=3)
        assert not scrolls_sideways(page)
        keep_picture(page, FOLDER / "phone-start.png")
        ask(page, seen, "street-corner", QUESTION)
        look_behind(page, seen, 5, tap=True)
        assert not scrolls_sideways(page)
        box = page.locator("#popover").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE[0]
        keep_picture(page, FOLDER / "phone.png")
    assert seen.answer == SENTENCE
    assert seen.problems == []


def test_the_keyboard_is_enough(served: Gateway, chromium: Browser) -> None:
    seen = PageSeen()
    with page_at(chromium, served.url, seen) as page:
        see_cameras_move(page, seen, num_cameras=3)
        page.get_by_role("radio", name="Camera front-door").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".camera[aria-checked=true]").count() == 1
        assert page.get_by_role("radio", name="Camera front-door", checked=False).count() == 1
        page.get_by_label("Your question").focus()
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        word = page.locator(".word")
        word.nth(2).wait_for()
        word.first.focus()
        page.keyboard.press("ArrowRight")
        page.locator("#popover").wait_for(state="visible")
        assert word.nth(1).get_attribute("aria-describedby") == "popover"
    assert seen.problems == []


def test_stop_frozen_and_pace_reach_the_decoder(served: Gateway, chromium: Browser) -> None:
    served.decoder.holds_after = 3
    seen = PageSeen()
    with page_at(chromium, served.url, seen) as page:
        see_cameras_move(page, seen, num_cameras=3)
        page.get_by_text("Frozen", exact=True).click()
        page.get_by_label("Pace").select_option("")
        page.get_by_label("Your question").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator(".word").nth(2).wait_for()
        assert served.decoder.num_open == 1
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Ask", exact=True).wait_for()
        page.wait_for_function("() => !document.querySelector('.running')")
    request = served.decoder.requests[0]
    assert (request.visual_context, request.tokens_per_second) == ("frozen", None)
    assert seen.problems == []


def test_errors_are_shown_plainly(served: Gateway, chromium: Browser) -> None:
    seen = PageSeen()
    with page_at(chromium, served.url, seen) as page:
        see_cameras_move(page, seen, num_cameras=3)
        served.decoder.refusal = DialogFailed(
            status=429, code="decoder_full", message="All places are taken."
        )
        ask(page, seen, "yard", QUESTION)
        assert page.get_by_role("alert").inner_text() == "All places are taken."
        served.decoder.refusal, served.decoder.fails_after = None, 4
        ask(page, seen, "yard", QUESTION)
        assert page.get_by_role("alert").last.inner_text() == "the engine failed"
        keep_picture(page, FOLDER / "errors.png")


@pytest.mark.parametrize("wanted", ["Bearer x", "*/*", "bytes=5-2", "bytes=0-9", "x" * 4000])
def test_files_are_whole_whatever_part_is_asked_for(served: Gateway, wanted: str) -> None:
    for path in ("/", "/page/page.js"):
        reply = httpx.get(served.url + path, headers={"Range": wanted}, trust_env=False)
        assert (reply.status_code, reply.headers["accept-ranges"]) == (200, "none")
        assert len(reply.content) == int(reply.headers["content-length"]) > 1000


def test_without_cameras_it_says_how_to_get_one(chromium: Browser) -> None:
    with gateway() as served, page_at(chromium, served.url, PageSeen()) as page:
        served.store.forget("front-door")
        page.get_by_text("No camera yet.").wait_for()
        assert "streamchat publish" in page.locator(".empty").inner_text()
