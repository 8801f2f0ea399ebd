"""The page at `/`: three files as they are, no build step, nothing from outside."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

FOLDER = Path(__file__).parent
KINDS = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}


def page_files() -> APIRouter:
    """The routes; only the files named here are served, so no path leads elsewhere."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return FileResponse(
            FOLDER / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"}
        )

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in KINDS:
            raise HTTPException(404)
        return FileResponse(FOLDER / name, media_type=KINDS[name], headers={"Cache-Control": "no-cache"})

    _ = (index, file)
    return router
