"""Drives the page in a real browser: for the page's own tests and for the test of the whole stack."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Request, sync_playwright

CHROMIUM = "/usr/bin/chromium"  # Debian's
WIDE = (1360, 860)
PHONE = (360, 740)

FRAMES_SHOWN = """() => Object.fromEntries([...document.querySelectorAll('.camera')].map(
    tile => [tile.querySelector('.name').textContent, tile.querySelector('img').dataset.frame]))"""
# All cameras' pictures have changed `times` times since the first look.
MOVING = """times => {
    const seen = (window.seenFrames ??= {});
    const tiles = [...document.querySelectorAll('.camera')];
    for (const tile of tiles) {
        const img = tile.querySelector('img');
        if (img.dataset.frame && img.naturalWidth) (seen[tile.textContent] ??= new Set()).add(img.dataset.frame);
    }
    const all = Object.values(seen);
    return all.length >= tiles.length && tiles.length > 0 && all.every(ids => ids.size > times);
}"""
# Records the number of words whenever it changes while the answer arrives.
COUNT_WORDS = """() => {
    window.wordCounts = [];
    new MutationObserver(() => {
        const words = [...document.querySelectorAll('.words')].at(-1);
        const count = words?.querySelectorAll('.word').length ?? 0;
        if (words?.classList.contains('running') && count !== window.wordCounts.at(-1)) window.wordCounts.push(count);
    }).observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true});
}"""
ANSWERED = """() => {
    const words = [...document.querySelectorAll('.words')].at(-1);
    return words && !words.classList.contains('running');
}"""


@dataclass
class PageSeen:
    """What the page showed."""

    cameras: list[str] = field(default_factory=lambda: list[str]())
    answer: str = ""
    word_counts: list[int] = field(default_factory=lambda: list[int]())  # while the answer arrived
    frame_ids: list[str] = field(default_factory=lambda: list[str]())  # of the words that were pointed at
    ages: list[str] = field(default_factory=lambda: list[str]())  # as the page shows them
    problems: list[str] = field(default_factory=lambda: list[str]())  # errors, requests to other hosts


@contextmanager
def browser() -> Generator[Browser]:
    """Headless Chromium."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@contextmanager
def page_at(
    browser: Browser, url: str, seen: PageSeen, *, size: tuple[int, int] = WIDE, dark: bool = False
) -> Generator[Page]:
    """The page in a window of that size; problems are recorded in `seen.problems`."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        has_touch=size == PHONE,
        device_scale_factor=2 if size == PHONE else 1,
    )
    page = context.new_page()

    def check_host(request: Request) -> None:
        if request.url.startswith("http") and urlsplit(request.url).netloc != urlsplit(url).netloc:
            seen.problems.append(f"asked another host: {request.url}")

    page.on("request", check_host)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("console", lambda said: seen.problems.append(said.text) if said.type == "error" else None)
    page.goto(url)
    yield page
    context.close()


def see_cameras_move(page: Page, seen: PageSeen, *, times: int = 3, num_cameras: int) -> None:
    """Wait until the pictures of all cameras have changed that many times."""
    page.wait_for_function("num => document.querySelectorAll('.camera').length >= num", arg=num_cameras)
    page.wait_for_function(MOVING, arg=times, polling=50)
    seen.cameras = list(page.evaluate(FRAMES_SHOWN))


def ask(page: Page, seen: PageSeen, camera: str, question: str, timeout_s: float = 60) -> None:
    """Choose the camera, ask, and wait for the end of the answer, recording how its words arrive."""
    page.get_by_role("radio", name=f"Camera {camera}", exact=True).click()
    page.evaluate(COUNT_WORDS)
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function(ANSWERED, timeout=timeout_s * 1000)
    seen.word_counts = page.evaluate("window.wordCounts")
    seen.answer = page.locator(".words").last.inner_text()


def look_behind(page: Page, seen: PageSeen, number: int, *, tap: bool = False) -> None:
    """Point at (or tap) a word of the newest answer and wait until its frame is shown."""
    word = page.locator(".words").last.locator(".word").nth(number)
    if tap:
        word.tap()
    else:
        word.hover()
    picture = page.locator("#popover-picture")
    picture.wait_for(state="visible")
    page.wait_for_function("() => document.getElementById('popover-picture').naturalWidth > 0")
    seen.frame_ids.append(picture.get_attribute("data-frame") or "")
    seen.ages.append(page.locator("#popover-age").inner_text())


def scrolls_sideways(page: Page) -> bool:
    """Whether the page is wider than its window."""
    return bool(
        page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")
    )


def keep_picture(page: Page, path: Path | None) -> None:
    """Save a screenshot of the window, if there is a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path)


def walk_through(
    url: str,
    camera: str,
    question: str,
    *,
    num_cameras: int = 1,
    folder: Path | None = None,
    timeout_s: float = 60,
) -> PageSeen:
    """The whole visit: cameras move, an answer comes, the first and a later word show their frames."""
    seen = PageSeen()
    with browser() as chromium, page_at(chromium, url, seen) as page:
        see_cameras_move(page, seen, num_cameras=num_cameras)
        ask(page, seen, camera, question, timeout_s)
        num_words = page.locator(".words").last.locator(".word").count()
        look_behind(page, seen, 0)
        look_behind(page, seen, num_words // 2)
        keep_picture(page, folder and folder / "page.png")
    return seen
