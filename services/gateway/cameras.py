"""`GET /v1/cameras`, the cameras' frames as JPEGs, and streams of pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import AfterValidator, BaseModel, Field
from starlette.responses import Response

from services.access.caller import Caller, caller_of
from services.gateway.open_stream import OpenStream
from services.gateway.picture_feed import PictureFeed, multipart
from services.gateway.question_service import QuestionService
from services.messages.api_error import ApiError, ErrorBody
from services.messages.camera_name import camera_id
from services.messages.video import CameraNote, CameraState
from services.ports.frame_store import is_private, parse_frame_id

BOUNDARY = "streamchat-picture"
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "No such camera, or the frame is gone"},
    409: {"model": ErrorBody, "description": "The camera has no frame yet"},
    503: {"model": ErrorBody, "description": "The store of the frames cannot be reached"},
}
JPEG = {200: {"description": "The picture", "content": {"image/jpeg": {}}}}


# A camera's name stands for its id.
CameraPath = Annotated[str, AfterValidator(camera_id), Path(description="id or name of the camera")]


class Camera(BaseModel):
    """The state of a camera."""

    id: str
    object: Literal["camera"] = "camera"
    name: str = Field(description="what people call it; without a name, its id")
    state: Literal["live", "silent", "no_frame"] = Field(
        description="silent: no frame for some seconds; no_frame: it sends, but no picture could be made of it"
    )
    problem: str = Field(description="why it is not seen, or not as wanted; empty: nothing is known")
    fps: float = Field(description="frames looked at per second")
    newest_frame_id: str
    newest_captured_s: float = Field(description="seconds since 1970")
    newest_frame_age_ms: float
    num_frames: int = Field(description="frames that can be seen now")
    capacity: int = Field(description="frames kept; older ones are forgotten")


class CameraList(BaseModel):
    """All cameras that have frames, and those that send and have a problem."""

    object: Literal["list"] = "list"
    data: list[Camera]


def camera_of(state: CameraState, note: CameraNote) -> Camera:
    """The camera's state as the API shows it, with the current age of its newest frame."""
    return Camera(
        id=state.camera,
        name=note.name or state.camera,
        state=state.state,
        problem=note.problem,
        fps=round(state.fps, 2),
        newest_frame_id=state.newest_frame_id,
        newest_captured_s=state.newest_captured_s,
        newest_frame_age_ms=round(max(0.0, time.time() - state.newest_captured_s) * 1000, 1),
        num_frames=state.num_frames,
        capacity=state.capacity,
    )


def unseen_camera(camera: str, note: CameraNote) -> Camera:
    """A camera that sends and has no frame."""
    return Camera(
        id=camera,
        name=note.name or camera,
        state="no_frame",
        problem=note.problem,
        fps=0.0,
        newest_frame_id="",
        newest_captured_s=0.0,
        newest_frame_age_ms=0.0,
        num_frames=0,
        capacity=0,
    )


def listed(states: Iterable[CameraState], notes: Mapping[str, CameraNote]) -> list[Camera]:
    """The cameras with frames, and those whose problem is why they have none."""
    found = {state.camera: camera_of(state, notes.get(state.camera, CameraNote())) for state in states}
    unseen = {name: unseen_camera(name, note) for name, note in notes.items() if note.problem}
    return [camera for _, camera in sorted((unseen | found).items())]


async def stored_frame(
    questions: QuestionService, caller: Caller, camera: str, frame_id: str, if_none_match: str | None
) -> Response:
    """The frame with that id. An id always means the same picture, so clients may cache it."""
    caller.check_can_see(camera)
    try:
        parse_frame_id(frame_id)
    except ValueError as error:
        raise ApiError(400, "invalid_frame_id", str(error)[:200], param="frame") from error
    headers = {"ETag": f'"{frame_id}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match and f'"{frame_id}"' in if_none_match:
        return Response(status_code=304, headers=headers)
    picture = (
        None
        if is_private(camera)
        else await questions.store.call(lambda store: store.picture(camera, frame_id))
    )
    if picture is None:
        await questions.camera(caller, camera)
        message = f"camera {camera!r} has no frame {frame_id} (any more): only its newest frames are kept"
        raise ApiError(404, "unknown_frame", message, param="frame")
    return Response(picture.jpeg, media_type="image/jpeg", headers=headers)


async def newest_frame(questions: QuestionService, caller: Caller, camera: str) -> Response:
    """The newest frame. It changes soon, so it is never cached."""
    caller.check_can_see(camera)
    picture = (
        None if is_private(camera) else await questions.store.call(lambda store: store.newest_picture(camera))
    )
    if picture is None:
        state = await questions.camera(caller, camera)
        raise ApiError(
            409, "no_frame", f"camera {state.camera!r} has no frame now: ask again", retry_after_s=1
        )
    headers = {
        "Cache-Control": "no-store",
        "X-Frame-Id": picture.frame_id,
        "X-Captured-S": f"{picture.captured_s:.3f}",
    }
    return Response(picture.jpeg, media_type="image/jpeg", headers=headers)


def picture_stream(feed: PictureFeed, caller: Caller, camera: str | None, kind: str) -> OpenStream:
    """A stream of new pictures of one camera, or (None) of all cameras that the caller may see."""
    viewer = feed.add_viewer(camera, caller)
    parts = multipart(viewer, BOUNDARY)
    return OpenStream(
        parts, close=lambda: feed.remove_viewer(viewer), media_type=f"multipart/{kind}; boundary={BOUNDARY}"
    )


def camera_routes(questions: QuestionService, feed: PictureFeed) -> APIRouter:
    """The routes. A camera's id may contain slashes, so the more specific routes come first."""
    router = APIRouter(prefix="/v1", tags=["Cameras"])

    @router.get("/cameras", response_model=CameraList, responses={503: ERRORS[503]})
    async def list_cameras(request: Request) -> CameraList:
        """All cameras that have frames or a problem, of those that the key may see."""
        caller = caller_of(request)
        cameras = await questions.store.call(lambda store: listed(store.cameras(), store.notes()))
        return CameraList(data=[camera for camera in cameras if caller.can_see(camera.id)])

    @router.get("/pictures", responses={200: {"content": {"multipart/mixed": {}}}, 429: {"model": ErrorBody}})
    async def watch_all_cameras(request: Request) -> Response:
        """New frames of all cameras that the key may see, on one connection. A slow reader misses frames.

        Each part is a JPEG with the headers X-Camera (percent-encoded), X-Frame-Id and X-Captured-S.
        """
        return picture_stream(feed, caller_of(request), None, "mixed")

    @router.get("/cameras/{camera:path}/frame.jpg", response_class=Response, responses={**ERRORS, **JPEG})
    async def get_frame(
        request: Request,
        camera: CameraPath,
        frame: Annotated[str | None, Query(description="a frame's id; default: the newest")] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """One frame as a JPEG: the newest, or the one with that id."""
        if frame is None:
            return await newest_frame(questions, caller_of(request), camera)
        return await stored_frame(questions, caller_of(request), camera, frame, if_none_match)

    @router.get(
        "/cameras/{camera:path}/stream",
        response_class=Response,
        responses={**ERRORS, 200: {"content": {"multipart/x-mixed-replace": {}}}},
    )
    async def watch_camera(request: Request, camera: CameraPath) -> Response:
        """New frames of one camera as motion JPEG, for as long as the connection is open."""
        caller = caller_of(request)
        await questions.camera(caller, camera)
        return picture_stream(feed, caller, camera, "x-mixed-replace")

    @router.get("/cameras/{camera:path}", response_model=Camera, responses=ERRORS)
    async def retrieve_camera(request: Request, camera: CameraPath) -> Camera:
        """One camera."""
        state = await questions.camera(caller_of(request), camera)
        notes = await questions.store.call(lambda store: store.notes([camera]))
        return camera_of(state, notes.get(camera, CameraNote()))

    _ = (list_cameras, watch_all_cameras, get_frame, watch_camera, retrieve_camera)
    return router
