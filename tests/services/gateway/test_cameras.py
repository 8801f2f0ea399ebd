"""The cameras' states and pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import httpx
import pytest

from services.gateway.gateway import make_app
from services.messages.video import CameraNote, CameraState, Picture
from services.ports.frame_store import StoreLost
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.served_gateway import (
    MODEL,
    Gateway,
    ScriptedDecoder,
    ScriptedPlayer,
    frame,
    listening,
    wait_for,
)


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_the_list_tells_each_cameras_state(http: httpx.Client) -> None:
    answer = http.get("/v1/cameras").json()
    assert answer["object"] == "list"
    (camera,) = answer["data"]
    assert camera["id"] == "front-door"
    assert (camera["state"], camera["num_frames"], camera["capacity"]) == ("live", 3, 4)
    assert 0 <= camera["newest_frame_age_ms"] < 60_000
    assert http.get("/v1/cameras/front-door").json()["newest_frame_id"] == camera["newest_frame_id"]
    assert code(http.get("/v1/cameras/nowhere")) == (404, "unknown_camera")


def test_a_camera_has_its_name_and_its_problem(served: Gateway, http: httpx.Client) -> None:
    large = CameraNote(name="Large", problem="picture: too large")
    served.store.announce(
        {"front-door": CameraNote(name="Entrée"), "large": large, "starts": CameraNote()}, 60.0
    )
    front, unseen = http.get("/v1/cameras").json()["data"]
    assert (front["id"], front["name"], front["problem"]) == ("front-door", "Entrée", "")
    assert (unseen["id"], unseen["state"], unseen["problem"]) == ("large", "no_frame", large.problem)
    assert http.get("/v1/cameras/front-door").json()["name"] == "Entrée"
    refused = http.get("/v1/cameras/large")
    assert code(refused) == (409, "no_frame")
    assert large.problem in refused.json()["error"]["message"]
    served.store.announce({}, 60.0)


def test_a_frame_is_that_very_frame_for_ever(served: Gateway, http: httpx.Client) -> None:
    oldest, *_, newest = served.store.newer_pictures({"front-door": "0-0"}, block_s=0)
    url = "/v1/cameras/front-door/frame.jpg"
    response = http.get(url, params={"frame": oldest.frame_id})
    assert response.content == oldest.jpeg != newest.jpeg
    assert response.headers["content-type"] == "image/jpeg"
    assert "immutable" in response.headers["cache-control"]
    tag = response.headers["etag"]
    again = http.get(url, params={"frame": oldest.frame_id}, headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    latest = http.get(url)
    assert (latest.content, latest.headers["cache-control"]) == (newest.jpeg, "no-store")
    assert latest.headers["x-frame-id"] == newest.frame_id


def test_a_frame_that_is_not_there_is_told(served: Gateway, http: httpx.Client) -> None:
    url = "/v1/cameras/front-door/frame.jpg"
    assert code(http.get(url, params={"frame": "1-1"})) == (404, "unknown_frame")
    assert code(http.get(url, params={"frame": "newest"})) == (400, "invalid_frame_id")
    assert code(http.get("/v1/cameras/nowhere/frame.jpg")) == (404, "unknown_camera")
    served.store.append(frame("clip-secret", 1), capacity=4)
    assert code(http.get("/v1/cameras/clip-secret/frame.jpg")) == (404, "unknown_camera")
    assert code(http.get("/v1/cameras/clip-secret/stream")) == (404, "unknown_camera")


def test_a_camera_is_found_by_its_name_too(served: Gateway, http: httpx.Client) -> None:
    served.store.append(frame("yard-gate-u", 1), capacity=4)
    for address in ("yard-gate-u", "Yard%2FGate%20%C3%BC", "Yard/Gate%20%C3%BC"):
        assert http.get(f"/v1/cameras/{address}").json()["id"] == "yard-gate-u"
        assert http.get(f"/v1/cameras/{address}/frame.jpg").status_code == 200


def parts(response: httpx.Response) -> Iterator[tuple[dict[str, str], bytes]]:
    """The parts of a multipart stream as they come: headers and body."""
    data = b""
    for piece in response.iter_raw():
        data += piece
        while b"\r\n\r\n" in data:
            head, rest = data.split(b"\r\n\r\n", 1)
            lines = [line.split(": ", 1) for line in head.decode().splitlines() if ": " in line]
            headers: dict[str, str] = dict(lines)  # type: ignore[arg-type]
            length = int(headers["Content-Length"])
            if len(rest) < length:
                break
            yield headers, rest[:length]
            data = rest[length:]


@pytest.mark.parametrize("url", ["/v1/cameras/hall/stream", "/v1/pictures"])
def test_new_frames_are_streamed_as_they_come(served: Gateway, http: httpx.Client, url: str) -> None:
    first = frame("hall", 1)
    served.store.append(first, capacity=4)
    with http.stream("GET", url) as response:
        assert response.headers["content-type"].startswith("multipart/")
        stream = (part for part in parts(response) if part[0]["X-Camera"] == "hall")
        assert next(stream)[1] == first.jpeg
        for number in (2, 3):
            new = frame("hall", number)
            served.store.append(new, capacity=4)
            headers, body = next(stream)
            assert (headers["X-Frame-Id"], body) == (new.frame_id, new.jpeg)
    wait_for(lambda: "streamchat_picture_viewers 0.0" in http.get("/metrics").text)


def test_a_camera_that_appears_is_streamed_too(served: Gateway, http: httpx.Client) -> None:
    with http.stream("GET", "/v1/pictures") as response:
        stream = parts(response)
        next(stream)
        served.store.append(frame("garden", 1), capacity=4)
        assert any(headers["X-Camera"] == "garden" for headers, _ in stream)


class FailingStore(MemoryFrameStore):
    """A store that can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def cameras(self, only: Collection[str] | None = None) -> list[CameraState]:
        self._check()
        return super().cameras(only)

    def camera(self, camera: str) -> CameraState | None:
        self._check()
        return super().camera(camera)

    def newest_picture(self, camera: str) -> Picture | None:
        self._check()
        return super().newest_picture(camera)

    def newer_pictures(self, after: Mapping[str, str], *, block_s: float) -> list[Picture]:
        self._check()
        return super().newer_pictures(after, block_s=block_s)

    def ping(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.away:
            raise StoreLost("away")


def test_a_store_that_is_away_stops_pictures_but_not_answers() -> None:
    store = FailingStore()
    store.append(frame("front-door", 1), capacity=4)
    decoder = ScriptedDecoder(MemoryFrameStore())
    app = make_app(Settings(access="open"), MODEL, store, decoder.decode, ScriptedPlayer(store).play_clip)
    with listening(app) as url, httpx.Client(base_url=url, verify=False, timeout=10) as http:
        assert http.get("/readyz").status_code == 200
        with http.stream("GET", "/v1/pictures") as response:
            stream = parts(response)
            next(stream)
            store.away = True
            for path in ("/v1/cameras", "/v1/cameras/front-door/frame.jpg"):
                assert code(http.get(path)) == (503, "store_lost")
            # It asks the store once a second at most.
            wait_for(lambda: http.get("/readyz").status_code == 503)
            content = [
                {"type": "video_url", "video_url": {"url": "camera://front-door"}},
                {"type": "text", "text": "What is happening?"},
            ]
            body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            store.away = False
            new = frame("front-door", 2)
            store.append(new, capacity=4)
            assert next(stream)[1] == new.jpeg


def test_a_camera_without_a_frame_is_told_apart_from_an_unknown_one() -> None:
    store = MemoryFrameStore()
    store.announce({"new": CameraNote()}, 60.0)
    decoder = ScriptedDecoder(store)
    app = make_app(Settings(access="open"), MODEL, store, decoder.decode, ScriptedPlayer(store).play_clip)
    with listening(app) as url, httpx.Client(base_url=url, verify=False, timeout=10) as http:
        part = {"type": "video_url", "video_url": {"url": "camera://new"}}
        content = [part, {"type": "text", "text": "What is happening?"}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        assert code(http.post("/v1/chat/completions", json=body)) == (409, "no_frame")
        assert code(http.get("/v1/cameras/new/frame.jpg")) == (409, "no_frame")
