"""No request passes without a valid key: every route is tried without a key and with wrong ones."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from services.access.api_keys import make_key
from services.access.authentication import PUBLIC_PATHS
from services.access.sign_in import COOKIE
from services.settings import Settings
from tests.services.access.keyed_gateway import Keys, answer_to, bearer, body, knock, routes
from tests.services.served_gateway import Gateway, gateway


def test_the_walk_finds_the_routes(served: Gateway) -> None:
    found = routes(served)
    for known in [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/cameras"),
        ("GET", "/v1/cameras/front-door/frame.jpg"),
        ("GET", "/v1/cameras/front-door/stream"),
        ("GET", "/v1/pictures"),
        ("WS", "/v1/realtime"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/page/page.js"),
    ]:
        assert known in found
    assert {"/healthz", "/readyz", "/sign-in"} == PUBLIC_PATHS


def wrong_keys(keys: Keys) -> list[dict[str, str]]:
    """Ways to bring no right key."""
    good = keys["admin"]
    almost = good[:-1] + ("0" if good[-1] != "0" else "1")
    return [
        {},
        bearer("none"),
        bearer(almost),
        bearer(good + "0"),
        bearer(keys["ended"]),
        bearer(good.replace(good[3:11], "00000000")),
        bearer(keys.kept["admin"].sha256),
        {"Authorization": f"Basic {good}"},
        {"Authorization": good},
        {"X-Api-Key": good},
        {"Cookie": f"{COOKIE}={almost}"},
        {"Cookie": f"{COOKIE}={good}", **bearer("sc_wrong")},
        bearer("x" * 5000),
    ]


def test_no_route_is_open_without_a_right_key(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    for method, path in routes(served):
        if path in PUBLIC_PATHS:
            continue
        for headers in wrong_keys(keys):
            if method == "WS":
                assert knock(served, path, headers) == 401, (path, headers)
                continue
            answer = answer_to(http, method, path, headers=headers)
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                assert answer.json()["error"]["type"] == "authentication_error"


def test_a_key_in_an_address_is_no_key(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    for name in ("key", "api_key", "token", "access_token"):
        assert http.get(f"/v1/cameras?{name}={keys['admin']}").status_code == 401
        assert knock(served, f"/v1/realtime?{name}={keys['admin']}", {}) == 401


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/healthz/", "/healthz/../v1/cameras", "//healthz", "/page/"]
)
def test_what_is_not_there_tells_nothing_either(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 401


def test_health_needs_no_key(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}


def test_only_an_admin_reads_the_metrics(http: httpx.Client, keys: Keys) -> None:
    answer = http.get("/metrics", headers=bearer(keys["ask"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_an_admin")
    text = http.get("/metrics", headers=bearer(keys["admin"])).text
    assert 'code="invalid_api_key"' in text
    assert not any(key in text or key[12:] in text for key in keys.values())


def test_openais_clients_bring_their_key(served: Gateway, keys: Keys) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=keys["ask"], max_retries=0) as client:
        answer = client.chat.completions.create(**body())
        assert answer.choices[0].message.content
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(**body())
        assert refused.value.code == "invalid_api_key"


def test_a_browsers_socket_brings_its_key_as_openais_do(served: Gateway, keys: Keys) -> None:
    url = f"ws{served.url[4:]}/v1/realtime"
    protocols: list[Any] = ["realtime", f"openai-insecure-api-key.{keys['ask']}"]
    with connect(url, subprotocols=protocols) as socket:
        assert socket.subprotocol == "realtime"
    with pytest.raises(InvalidStatus):
        connect(url, subprotocols=[protocols[0], "openai-insecure-api-key.none"])  # type: ignore[list-item]


def test_an_open_gateway_serves_this_machine_alone() -> None:
    with (
        gateway(Settings(access="open")) as served,
        httpx.Client(base_url=served.url, trust_env=False) as http,
    ):
        assert http.get("/v1/cameras").status_code == 200
        assert http.get("/v1/cameras", headers={"Host": "localhost:8000"}).status_code == 200
        for name in ("rebound.example", "192.168.1.7:8000", "127.0.0.1.evil.example", "localhost.evil", ""):
            answer = http.get("/v1/cameras", headers={"Host": name})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_this_machine"), name
        # A proxy on this machine says for whom it asks.
        assert http.get("/v1/cameras", headers={"X-Forwarded-For": "10.1.2.3"}).status_code == 403
        assert knock(served, "/v1/realtime", {}) == 101
        assert knock(served, "/v1/realtime", {"Origin": "https://evil.example"}) == 403


def test_without_a_keys_file_nobody_is_let_in(caplog: pytest.LogCaptureFixture) -> None:
    with gateway(Settings()) as served, httpx.Client(base_url=served.url, trust_env=False) as http:
        for headers in ({}, bearer("none"), bearer(make_key("me", role="admin", cameras=("*",))[0])):
            assert http.get("/v1/models", headers=headers).status_code == 401
        assert http.get("/healthz").status_code == 200
    assert "no API key is known" in caplog.text


def test_no_key_is_in_the_log(
    served: Gateway, http: httpx.Client, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for text in (keys["ask"], "sc_00000000_" + "f" * 64):
        http.get("/v1/models", headers=bearer(text))
        http.post("/sign-in", data={"key": text})
        knock(served, "/v1/realtime", bearer(text))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("services")]
    assert not any("sc_" in line for line in ours)
