"""`GET /v1/cameras` and the cameras' pictures: which ones are there, and what a word was spoken from."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from services.access.authentication import Caller, caller_of
from services.gateway.open_stream import OpenStream
from services.gateway.picture_feed import PictureFeed, multipart
from services.gateway.question_service import Desk
from services.messages.api_error import ApiError, ErrorBody
from services.messages.video import CameraState
from services.ports.frame_store import is_private, parse_frame_id

BOUNDARY = "streamchat-picture"
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "No such camera, or the frame is gone"},
    409: {"model": ErrorBody, "description": "The camera has no frame yet"},
    503: {"model": ErrorBody, "description": "The store of the frames cannot be reached"},
}
JPEG = {200: {"description": "The picture", "content": {"image/jpeg": {}}}}


class Camera(BaseModel):
    """What is known of a camera."""

    id: str
    object: Literal["camera"] = "camera"
    state: Literal["live", "silent"] = Field(description="silent: no frame for some seconds")
    fps: float = Field(description="frames looked at per second")
    newest_frame_id: str
    newest_captured_s: float = Field(description="seconds since 1970")
    newest_frame_age_ms: float
    num_frames: int = Field(description="frames that can be seen now")
    capacity: int = Field(description="frames kept; older ones are forgotten")


class CameraList(BaseModel):
    """All cameras that have frames."""

    object: Literal["list"] = "list"
    data: list[Camera]


def camera_of(state: CameraState) -> Camera:
    """The state with the age of its newest frame, now."""
    return Camera(
        id=state.camera,
        state=state.state,
        fps=round(state.fps, 2),
        newest_frame_id=state.newest_frame_id,
        newest_captured_s=state.newest_captured_s,
        newest_frame_age_ms=round(max(0.0, time.time() - state.newest_captured_s) * 1000, 1),
        num_frames=state.num_frames,
        capacity=state.capacity,
    )


async def that_frame(desk: Desk, caller: Caller, camera: str, frame_id: str, known: str | None) -> Response:
    """That very frame. An id stands for the same picture for ever, so whoever has it may keep it."""
    caller.check_sees(camera)
    try:
        parse_frame_id(frame_id)
    except ValueError as error:
        raise ApiError(400, "invalid_frame_id", str(error)[:200], param="frame") from error
    headers = {"ETag": f'"{frame_id}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if known and f'"{frame_id}"' in known:
        return Response(status_code=304, headers=headers)
    frame = None if is_private(camera) else await desk.store.ask(lambda store: store.frame(camera, frame_id))
    if frame is None:
        await desk.camera(caller, camera)
        message = f"camera {camera!r} has no frame {frame_id} (any more): only its newest frames are kept"
        raise ApiError(404, "unknown_frame", message, param="frame")
    return Response(frame.jpeg, media_type="image/jpeg", headers=headers)


async def newest_frame(desk: Desk, caller: Caller, camera: str) -> Response:
    """The newest frame; it is another one soon, so nobody keeps it."""
    caller.check_sees(camera)
    frame = None if is_private(camera) else await desk.store.ask(lambda store: store.newest_frame(camera))
    if frame is None:
        state = await desk.camera(caller, camera)
        raise ApiError(
            409, "no_frame", f"camera {state.camera!r} has no frame now: ask again", retry_after_s=1
        )
    headers = {
        "Cache-Control": "no-store",
        "X-Frame-Id": frame.frame_id,
        "X-Captured-S": f"{frame.captured_s:.3f}",
    }
    return Response(frame.jpeg, media_type="image/jpeg", headers=headers)


def pictures(feed: PictureFeed, caller: Caller, camera: str | None, kind: str) -> OpenStream:
    """A stream of pictures, of one camera or of all that the caller may see."""
    viewer = feed.enter(camera, caller)
    parts = multipart(viewer, BOUNDARY)
    return OpenStream(
        parts, close=lambda: feed.leave(viewer), media_type=f"multipart/{kind}; boundary={BOUNDARY}"
    )


def camera_api(desk: Desk, feed: PictureFeed) -> APIRouter:
    """The routes. A camera's id may hold slashes: the more special routes come first."""
    router = APIRouter(prefix="/v1", tags=["Cameras"])

    @router.get("/cameras", response_model=CameraList, responses={503: ERRORS[503]})
    async def list_cameras(request: Request) -> CameraList:
        """All cameras that have frames, of those that the key may see."""
        caller = caller_of(request)
        states = await desk.store.ask(lambda store: store.cameras())
        return CameraList(data=[camera_of(state) for state in states if caller.sees(state.camera)])

    @router.get("/pictures", responses={200: {"content": {"multipart/mixed": {}}}, 429: {"model": ErrorBody}})
    async def watch_all_cameras(request: Request) -> Response:
        """New frames of all cameras that the key may see, on one connection. A slow reader misses frames.

        Each part is a JPEG with the headers X-Camera (percent-encoded), X-Frame-Id and X-Captured-S.
        """
        return pictures(feed, caller_of(request), None, "mixed")

    @router.get("/cameras/{camera:path}/frame.jpg", response_class=Response, responses={**ERRORS, **JPEG})
    async def get_frame(
        request: Request,
        camera: str,
        frame: Annotated[str | None, Query(description="a frame's id; default: the newest")] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """One frame as a JPEG: the newest, or that very one."""
        if frame is None:
            return await newest_frame(desk, caller_of(request), camera)
        return await that_frame(desk, caller_of(request), camera, frame, if_none_match)

    @router.get(
        "/cameras/{camera:path}/stream",
        response_class=Response,
        responses={**ERRORS, 200: {"content": {"multipart/x-mixed-replace": {}}}},
    )
    async def watch_camera(request: Request, camera: str) -> Response:
        """New frames of one camera as motion JPEG, for as long as the connection is open."""
        caller = caller_of(request)
        await desk.camera(caller, camera)
        return pictures(feed, caller, camera, "x-mixed-replace")

    @router.get("/cameras/{camera:path}", response_model=Camera, responses=ERRORS)
    async def retrieve_camera(request: Request, camera: str) -> Camera:
        """One camera."""
        return camera_of(await desk.camera(caller_of(request), camera))

    _ = (list_cameras, watch_all_cameras, get_frame, watch_camera, retrieve_camera)
    return router
