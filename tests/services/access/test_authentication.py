"""Nobody passes without a right: every route walked without a key, with wrong ones, and with one too often."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, WebSocketRoute
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from services.access.api_keys import ApiKey, edit_keys, make_key
from services.access.authentication import PUBLIC_PATHS
from services.access.sign_in import COOKIE
from services.settings import Settings
from tests.services.served_gateway import MODEL, Gateway, frame, gateway, wait_for

RIGHTS: dict[str, dict[str, Any]] = {
    "ask": {"role": "ask", "cameras": ("*",)},
    "yard": {"role": "ask", "cameras": ("yard*", "garden")},
    "nothing": {"role": "ask", "cameras": ()},
    "admin": {"role": "admin", "cameras": ("*",)},
    "ended": {"role": "admin", "cameras": ("*",), "ends_s": 1.0},
    "spent": {"role": "admin", "cameras": ("*",), "requests_per_minute": 1},
    "narrow": {"role": "admin", "cameras": ("*",), "requests_at_once": 1},
    "revoked": {"role": "ask", "cameras": ("*",)},
}
WITHOUT_RIGHT = (401, 403, 404)


class Keys(dict[str, str]):
    """The texts of the keys in RIGHTS, and their file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, ApiKey] = {}
        with edit_keys(path) as keys:
            for name, rights in RIGHTS.items():
                self[name], key = make_key(name, **rights)
                keys[key.id] = self.kept[name] = key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def served(keys: Keys) -> Iterator[Gateway]:
    settings = Settings(
        keys_file=str(keys.path), origins_allowed="https://desk.example, https://other.example"
    )
    with gateway(settings) as served:
        served.store.append(frame("yard-2", 1), capacity=4)
        yield served


@pytest.fixture(scope="module")
def http(served: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=10, trust_env=False) as client:
        yield client


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def body(camera: str = "front-door", **more: Any) -> dict[str, Any]:
    content = [
        {"type": "video_url", "video_url": {"url": f"camera://{camera}"}},
        {"type": "text", "text": "What is happening?"},
    ]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def routes(served: Gateway) -> list[tuple[str, str]]:
    """Method (or WS) and path of every route, its parameters filled in."""
    found: list[tuple[str, str]] = []

    def walk(parts: list[BaseRoute]) -> None:
        for route in parts:
            path = str(getattr(route, "path", "")).replace("{camera:path}", "front-door")
            path = path.replace("{model_id:path}", MODEL).replace("{name}", "page.js")
            assert "{" not in path, f"a parameter that this test does not know: {path}"
            if isinstance(route, WebSocketRoute):
                found.append(("WS", path))
            elif isinstance(route, APIRoute) or hasattr(route, "methods"):
                found.extend((method, path) for method in sorted(getattr(route, "methods", ()) or ()))
            else:
                inner: Any = getattr(route, "original_router", route)
                walk(list(getattr(route, "routes", ()) or inner.routes))

    walk(list(served.app.routes))
    return found


def answer_to(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    if method == "POST" and path == "/v1/chat/completions":
        options["json"] = body()
    with http.stream(method, path, **options) as response:  # some answers never end
        if response.status_code != 200:
            response.read()
        return response


def knock(served: Gateway, path: str, headers: dict[str, str]) -> int:
    """How a WebSocket is answered: 101, or the HTTP status of its refusal."""
    try:
        with connect(f"ws{served.url[4:]}{path}", additional_headers=headers):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


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


def test_a_key_for_other_cameras_sees_none_of_this_one(
    served: Gateway, http: httpx.Client, keys: Keys
) -> None:
    for name in ("yard", "nothing"):
        headers = bearer(keys[name])
        for method, path in routes(served):
            if "front-door" in path or path.endswith("/completions"):
                answer = answer_to(http, method, path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_your_camera"), path
        newest = served.store.newest("front-door", 1)[0].frame_id
        answer = http.get(f"/v1/cameras/front-door/frame.jpg?frame={newest}", headers=headers)
        assert answer.status_code == 403
    # Whether a camera is there at all is told to nobody else.
    unknown = http.get("/v1/cameras/nowhere", headers=bearer(keys["yard"])).json()["error"]
    known = http.get("/v1/cameras/front-door", headers=bearer(keys["yard"])).json()["error"]
    assert unknown == {**known, "message": known["message"].replace("front-door", "nowhere")}


def test_a_key_sees_its_own_cameras_and_no_others_among_all(http: httpx.Client, keys: Keys) -> None:
    def listed(name: str) -> list[str]:
        return [row["id"] for row in http.get("/v1/cameras", headers=bearer(keys[name])).json()["data"]]

    assert (listed("ask"), listed("yard"), listed("nothing")) == (["front-door", "yard-2"], ["yard-2"], [])
    assert http.get("/v1/cameras/yard-2/frame.jpg", headers=bearer(keys["yard"])).status_code == 200
    assert http.get("/v1/cameras/yard-20", headers=bearer(keys["yard"])).status_code == 404
    with http.stream("GET", "/v1/pictures", headers=bearer(keys["yard"])) as pictures:
        seen = b""
        for piece in pictures.iter_bytes():
            seen += piece
            if seen.count(b"X-Frame-Id") >= 1:
                break
    assert b"X-Camera: yard-2" in seen
    assert b"front-door" not in seen


def test_a_realtime_session_sees_only_its_keys_cameras(served: Gateway, keys: Keys) -> None:
    with connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=bearer(keys["yard"])) as socket:
        assert receive(socket)["type"] == "session.created"
        send(socket, {"type": "session.update", "session": {"streamchat": {"camera": "front-door"}}})
        assert receive(socket)["error"]["code"] == "not_your_camera"
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What?"}]}
        send(socket, {"type": "conversation.item.create", "item": item})
        assert [receive(socket)["type"] for _ in range(2)] == [
            "conversation.item.added",
            "conversation.item.done",
        ]
        send(socket, {"type": "response.create", "response": {"streamchat": {"camera": "front-door"}}})
        assert receive(socket)["error"]["code"] == "not_your_camera"
        send(socket, {"type": "response.create", "response": {"streamchat": {"camera": "yard-2"}}})
        assert receive(socket)["type"] == "response.created"


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=10))


def send(socket: ClientConnection, event: dict[str, Any]) -> None:
    socket.send(json.dumps(event))


def test_only_an_admin_reads_the_metrics(http: httpx.Client, keys: Keys) -> None:
    answer = http.get("/metrics", headers=bearer(keys["ask"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_an_admin")
    text = http.get("/metrics", headers=bearer(keys["admin"])).text
    assert 'code="invalid_api_key"' in text
    assert not any(key in text or key[12:] in text for key in keys.values())


def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    served: Gateway, http: httpx.Client, keys: Keys
) -> None:
    headers = bearer(keys["spent"])
    assert http.get("/v1/models", headers=headers).status_code == 200
    for method, path in routes(served):
        if path in PUBLIC_PATHS:
            continue
        if method == "WS":
            assert knock(served, path, headers) == 429
            continue
        answer = answer_to(http, method, path, headers=headers)
        assert answer.status_code == 429, (method, path)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert http.get("/v1/models", headers=bearer(keys["ask"])).status_code == 200  # others are not meant


def test_a_key_has_so_many_places(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    headers = bearer(keys["narrow"])
    with connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=headers):
        answer = http.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_open_requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert knock(served, "/v1/realtime", headers) == 429
    wait_for(lambda: http.get("/v1/models", headers=headers).status_code == 200)
    with http.stream("GET", "/v1/pictures", headers=headers):
        assert http.get("/v1/models", headers=headers).status_code == 429
    wait_for(lambda: http.get("/v1/models", headers=headers).status_code == 200)


def test_events_of_a_session_count_as_requests(served: Gateway, keys: Keys) -> None:
    with edit_keys(keys.path) as kept:
        text, key = make_key("chatty", role="ask", cameras=("*",), requests_per_minute=3)
        kept[key.id] = key
    wait_for(lambda: knock(served, "/v1/models", bearer(text)) != 401)  # counts as well: two are left
    with connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=bearer(text)) as socket:
        assert receive(socket)["type"] == "session.created"
        codes: list[str] = []
        for _ in range(2):
            send(socket, {"type": "response.cancel"})
            codes.append(receive(socket)["error"]["code"])
    assert codes == ["response_cancel_not_active", "too_many_requests"]


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


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://desk.example.evil"]
)
def test_pages_of_other_sites_are_turned_away(
    served: Gateway, http: httpx.Client, keys: Keys, origin: str
) -> None:
    headers = {**bearer(keys["admin"]), "Origin": origin}
    for method, path in routes(served):
        if method == "WS":
            assert knock(served, path, headers) == 403
        else:
            answer = answer_to(http, method, path, headers=headers)
            assert answer.status_code == 403, (method, path)
            assert "access-control-allow-origin" not in answer.headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert http.options("/v1/chat/completions", headers=preflight).status_code == 403


def test_a_picture_in_another_sites_page_is_turned_away(http: httpx.Client, keys: Keys) -> None:
    elsewhere = {
        "Cookie": f"{COOKIE}={keys['ask']}",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
    }
    assert http.get("/v1/cameras/front-door/frame.jpg", headers=elsewhere).status_code == 403
    assert http.get("/", headers={**elsewhere, "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_pages_of_listed_sites_may_call(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    preflight = {
        "Origin": "https://desk.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = http.options("/v1/chat/completions", headers=preflight)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        200,
        "https://desk.example",
    )
    assert "access-control-allow-credentials" not in answer.headers
    headers = {"Origin": "https://desk.example", **bearer(keys["ask"])}
    answer = http.post("/v1/chat/completions", headers=headers, json=body())
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        200,
        "https://desk.example",
    )
    assert http.get("/v1/models", headers={"Origin": "https://desk.example"}).status_code == 401
    assert knock(served, "/v1/realtime", headers) == 101


def test_our_own_page_may_call(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    assert http.get("/v1/models", headers={"Origin": served.url, **bearer(keys["ask"])}).status_code == 200
    assert knock(served, "/v1/realtime", {"Origin": served.url, **bearer(keys["ask"])}) == 101


def revoke(keys: Keys, name: str) -> None:
    with edit_keys(keys.path) as kept:
        del kept[keys.kept[name].id]


def test_a_revoked_key_ends_what_is_open(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    headers = bearer(keys["revoked"])
    served.decoder.start_over(words=["word "] * 100_000, pace_s=0.05)
    with ExitStack() as open_:
        socket = open_.enter_context(connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=headers))
        assert receive(socket)["type"] == "session.created"
        ask = body(stream=True)
        words = open_.enter_context(http.stream("POST", "/v1/chat/completions", json=ask, headers=headers))
        assert words.status_code == 200
        lines = words.iter_lines()
        next(lines)
        revoke(keys, "revoked")
        rest = list(lines)  # it ends
        send(socket, {"type": "response.cancel"})
        with pytest.raises(ConnectionClosed) as closed:
            receive(socket)
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "invalid_api_key"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    served.decoder.start_over()
    assert http.get("/v1/models", headers=headers).status_code == 401


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


def test_a_slow_body_holds_no_place_for_ever(
    served: Gateway, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.middleware.BODY_TIMEOUT_S", 0.2)

    def slow() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1.0)
        yield b"}"

    headers = {**bearer(keys["ask"]), "Content-Type": "application/json"}
    with httpx.Client(base_url=served.url, timeout=10, trust_env=False) as http:
        answer = http.post("/v1/chat/completions", content=slow(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_too_slow")
