"""`/sign-in`: where a person shows a key, which the browser then keeps in a cookie that no script can read."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.access.api_keys import Keyring
from services.messages.api_error import ApiError

SIGN_IN = "/sign-in"
COOKIE = "streamchat_key"
MAX_BYTES = 1024

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 24rem; margin: 20vh auto; padding: 0 1rem; }
:root { color-scheme: light dark; }
input, button { font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin-top: .5rem; }
"""
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>StreamChat</title>
<style>{style}</style><main><h1>StreamChat</h1><p role="status">{text}</p>
<form method="post" action="{action}"><label>API key
<input type="password" name="key" autocomplete="current-password" autofocus></label>
<button>Sign in</button></form></main></html>"""


def sign_in_page(status: int, text: str = "Show an API key to see the cameras.") -> Response:
    """The form, without script and with nothing from elsewhere."""
    policy = (
        f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return HTMLResponse(PAGE.format(style=STYLE, text=text, action=SIGN_IN), status, headers)


def sign_in(keyring: Keyring) -> APIRouter:
    """The routes. An empty key signs out."""
    router = APIRouter(include_in_schema=False)

    @router.get(SIGN_IN)
    async def form() -> Response:
        return sign_in_page(200)

    @router.post(SIGN_IN)
    async def show_key(request: Request) -> Response:
        key = await posted_key(request)
        found = keyring.find(key)
        if key and (found is None or found.has_ended):
            return sign_in_page(401, "This API key is not known.")
        answer = RedirectResponse("/" if key else SIGN_IN, 303, {"Cache-Control": "no-store"})
        encrypted = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        if key:
            answer.set_cookie(COOKIE, key, secure=encrypted, httponly=True, samesite="strict")
        else:
            answer.delete_cookie(COOKIE)
        return answer

    _ = (form, show_key)
    return router


async def posted_key(request: Request) -> str:
    """The form's key; ApiError 413 for more than any key."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise ApiError(413, "request_too_large", f"got more than {MAX_BYTES} bytes, wanted an API key")
    return parse_qs(body.decode(errors="replace")).get("key", [""])[0].strip()
