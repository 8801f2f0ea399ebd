"""A key sees the cameras it is for, and no others."""

from __future__ import annotations

import httpx
from websockets.sync.client import connect

from tests.services.access.keyed_gateway import Keys, answer_to, bearer, receive, routes, send
from tests.services.served_gateway import Gateway


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
