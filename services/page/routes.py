"""The page at `/`: static files, without a build step and without anything from other sites."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "answers.js": "text/javascript",
    "cameras.js": "text/javascript",
    "elements.js": "text/javascript",
    "pictures.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}


class WholeFile(FileResponse):
    """A small file, always whole: a wrong Range header, which FileResponse refuses in plain text, is ignored."""

    def __init__(self, name: str) -> None:
        headers = {"Cache-Control": "no-cache", "Accept-Ranges": "none"}
        super().__init__(FOLDER / name, media_type=MEDIA_TYPES[name], headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def page_routes() -> APIRouter:
    """The routes. Only the files in MEDIA_TYPES are served, so no path can reach another file."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return WholeFile("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in MEDIA_TYPES:
            raise HTTPException(404)
        return WholeFile(name)

    _ = (index, file)
    return router
