"""Links and paths in the documentation lead somewhere, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model.config import PROJECT_ROOT

PAGES = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "helm/streamchat/README.md",
        "model/streamchat-tiny/README.md",
        ".github/**/*.md",
    )
    for path in sorted(PROJECT_ROOT.glob(pattern))
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:model|services|training|tests|deploy|helm)/[\w./-]+)`")
README_LINES = 150


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def name(page: Path) -> str:
    return str(page.relative_to(PROJECT_ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong: list[str] = []
    for link in LINK.findall(page.read_text()):
        file, _, anchor = link.partition("#")
        target = page if not file else page.parent / file
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_paths_are_there(page: Path) -> None:
    named = {path.rstrip("/.") for path in PATH.findall(page.read_text())}
    folders = (PROJECT_ROOT, PROJECT_ROOT / "helm" / "streamchat")
    assert [path for path in sorted(named) if not any((folder / path).exists() for folder in folders)] == []


def test_every_page_is_in_the_index() -> None:
    index = (PROJECT_ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in PROJECT_ROOT.glob("docs/*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_the_readme_is_short() -> None:
    assert len((PROJECT_ROOT / "README.md").read_text().splitlines()) <= README_LINES
