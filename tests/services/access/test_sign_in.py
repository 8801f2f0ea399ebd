"""Signing in with a browser: a key becomes a cookie that no script can read, and the page works with it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from services.access.api_keys import edit_keys, make_key
from services.access.sign_in import COOKIE
from services.settings import Settings
from tests.services.page_driver import PageSeen, ask, browser, page_at
from tests.services.served_gateway import Gateway, gateway

HTML = {"Accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def key_and_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gateway]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    text, key = make_key("me", role="ask", cameras=("*",))
    with edit_keys(path) as keys:
        keys[key.id] = key
    with gateway(Settings(keys_file=str(path))) as served:
        yield text, served


def test_a_person_without_a_key_is_shown_where_to_show_one(key_and_gateway: tuple[str, Gateway]) -> None:
    _, served = key_and_gateway
    with httpx.Client(base_url=served.url, trust_env=False) as http:
        for path in ("/", "/docs", "/metrics"):
            answer = http.get(path, headers=HTML)
            assert (answer.status_code, 'action="/sign-in"' in answer.text) == (401, True)
            policies = answer.headers.get_list("content-security-policy")
            assert len(policies) == 1
            assert "script-src" not in policies[0]
            assert "default-src 'none'" in policies[0]


def test_a_key_becomes_a_cookie_that_no_script_reads(key_and_gateway: tuple[str, Gateway]) -> None:
    text, served = key_and_gateway
    with httpx.Client(base_url=served.url, trust_env=False) as http:
        refused = http.post("/sign-in", data={"key": "sc_wrong"})
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        assert "sc_wrong" not in refused.text
        answer = http.post("/sign-in", data={"key": text})
        cookie = answer.headers["set-cookie"].lower()
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie  # as it came: without TLS
        assert http.get("/v1/cameras").status_code == 200
        behind_tls = http.post("/sign-in", data={"key": text}, headers={"X-Forwarded-Proto": "https"})
        assert "secure" in behind_tls.headers["set-cookie"].lower()
        http.post("/sign-in", data={"key": ""})  # signs out
        http.cookies.delete(COOKIE)
        assert http.get("/v1/cameras").status_code == 401


def test_what_is_too_long_for_a_key_is_not_read(key_and_gateway: tuple[str, Gateway]) -> None:
    _, served = key_and_gateway
    with httpx.Client(base_url=served.url, trust_env=False) as http:
        assert http.post("/sign-in", data={"key": "x" * 100_000}).status_code == 413


def test_the_page_works_after_signing_in(key_and_gateway: tuple[str, Gateway]) -> None:
    text, served = key_and_gateway
    seen = PageSeen()
    with browser() as chromium, page_at(chromium, f"{served.url}/sign-in", seen) as page:
        page.get_by_label("API key").fill(text)
        page.get_by_role("button", name="Sign in").click()
        ask(page, seen, "front-door", "What is happening?")
    assert seen.answer
    assert seen.problems == []
