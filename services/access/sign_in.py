"""`/sign-in`: a person enters a key, and the browser keeps it in a cookie that scripts cannot read."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.access.api_keys import ApiKeys
from services.messages.api_error import ApiError

SIGN_IN_PATH = "/sign-in"
COOKIE = "streamchat_key"
MAX_FORM_BYTES = 1024

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


def sign_in_page(status: int, text: str = "Enter an API key to see the cameras.") -> Response:
    """The sign-in form. It needs no script and loads nothing from other sites."""
    policy = (
        f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return HTMLResponse(PAGE.format(style=STYLE, text=text, action=SIGN_IN_PATH), status, headers)


def sign_in_routes(api_keys: ApiKeys) -> APIRouter:
    """The routes. Sending an empty key signs out."""
    router = APIRouter(include_in_schema=False)

    @router.get(SIGN_IN_PATH)
    async def show_form() -> Response:
        return sign_in_page(200)

    @router.post(SIGN_IN_PATH)
    async def sign_in(request: Request) -> Response:
        key = await posted_key(request)
        found = api_keys.find(key)
        if key and (found is None or found.has_expired):
            return sign_in_page(401, "This API key is not known.")
        response = RedirectResponse("/" if key else SIGN_IN_PATH, 303, {"Cache-Control": "no-store"})
        encrypted = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        if key:
            response.set_cookie(COOKIE, key, secure=encrypted, httponly=True, samesite="strict")
        else:
            response.delete_cookie(COOKIE)
        return response

    _ = (show_form, sign_in)
    return router


async def posted_key(request: Request) -> str:
    """The key in the form. Raises ApiError 413 if the form is too large to hold just a key."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise ApiError(
                413, "request_too_large", f"got more than {MAX_FORM_BYTES} bytes, wanted an API key"
            )
    return parse_qs(body.decode(errors="replace")).get("key", [""])[0].strip()
