"""The page at `/`: static files, without a build step and without anything from other sites."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

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


def page_routes() -> APIRouter:
    """The routes. Only the files in MEDIA_TYPES are served, so no path can reach another file."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return FileResponse(
            FOLDER / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"}
        )

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in MEDIA_TYPES:
            raise HTTPException(404)
        return FileResponse(
            FOLDER / name, media_type=MEDIA_TYPES[name], headers={"Cache-Control": "no-cache"}
        )

    _ = (index, file)
    return router
