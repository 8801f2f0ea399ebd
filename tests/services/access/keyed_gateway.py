"""A gateway that needs keys, one key for each kind of right, and ways to call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from services.access.api_keys import ApiKey, edit_keys, make_key
from tests.services.served_gateway import MODEL, Gateway

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


class Keys(dict[str, str]):
    """The texts of the keys in RIGHTS, and their file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, ApiKey] = {}
        with edit_keys(path) as keys:
            for name, rights in RIGHTS.items():
                self[name], key = make_key(name, **rights)
                keys[key.id] = self.kept[name] = key


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


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=10))


def send(socket: ClientConnection, event: dict[str, Any]) -> None:
    socket.send(json.dumps(event))
