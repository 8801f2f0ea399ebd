"""The OpenAPI document, with what FastAPI cannot see, and the `/docs` page made from it."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from services.access.authentication import PUBLIC_PATHS
from services.gateway.chat.reply import ChatCompletionChunk
from services.gateway.chat.request import ChatRequest

REFERENCE = "#/components/schemas/{model}"
ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}}
ACCESS_ERRORS = {  # of the authentication before every route
    "400": {"description": "Something in the request is wrong", **ERROR},
    "401": {"description": "No API key, or none that is known", **ERROR},
    "403": {
        "description": "The key may not: another's camera, an admin's route, another site's page",
        **ERROR,
    },
    "429": {"description": "The key has asked too often, or has too much open: `Retry-After`", **ERROR},
}
EXAMPLE = """curl -N http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' -d '{
  "model": "MODEL", "stream": true, "streamchat": {"tokens_per_second": 4},
  "messages": [{"role": "user", "content": [
    {"type": "video_url", "video_url": {"url": "camera://front-door"}},
    {"type": "text", "text": "Tell me what happens from now on."}]}]}'"""
REALTIME = """
<section><h2>Realtime</h2><article><h3><code>WS</code> /v1/realtime?model=</h3>
<p>OpenAI's Realtime events with text: <code>session.update</code>, <code>conversation.item.create</code>,
<code>conversation.item.retrieve</code>, <code>conversation.item.delete</code>, <code>response.create</code>,
<code>response.cancel</code>. Name the camera with <code>session.update</code>:
<code>{"type": "session.update", "session": {"streamchat": {"camera": "front-door"}}}</code>.
Each <code>response.output_text.delta</code> brings the facts of its tokens under <code>streamchat</code>;
<code>streamchat.camera.lost</code> says that no new frame comes any more.</p></article></section>
"""


def api_document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1, with the chat request, which is parsed by hand, and the chunks of a streamed answer."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    models = [(ChatRequest, "validation"), (ChatCompletionChunk, "serialization")]
    _, definitions = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas = document["components"]["schemas"]
    schemas.update(definitions["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):  # all errors have OpenAI's format
        schemas.pop(unused, None)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path in PUBLIC_PATHS:
                operation["security"] = []
            else:
                operation["responses"] = ACCESS_ERRORS | operation["responses"]
    return document


def schema_html(schema: Any) -> str:
    """A schema as JSON text; a reference to another schema as a link."""
    reference = schema.get("$ref") if isinstance(schema, dict) else None
    if reference:
        name = escape(reference.rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    return f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre>"


def content_html(content: dict[str, Any]) -> str:
    """Each media type with its schema."""
    kinds = [
        f"<code>{escape(kind)}</code> {schema_html(c['schema']) if c.get('schema') else ''}"
        for kind, c in content.items()
    ]
    return ", ".join(kinds)


def operation_html(path: str, method: str, operation: dict[str, Any]) -> str:
    """One route: its parameters, body and responses."""
    rows = [
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p.get('description', p['in']))}</td></tr>"
        for p in operation.get("parameters", [])
    ]
    if "requestBody" in operation:
        rows.append(f"<tr><td>body</td><td>{content_html(operation['requestBody']['content'])}</td></tr>")
    for status, response in operation["responses"].items():
        about = f"{escape(response.get('description', ''))} {content_html(response.get('content', {}))}"
        rows.append(f"<tr><td>{escape(status)}</td><td>{about}</td></tr>")
    text = escape(operation.get("description", ""))
    title = f"<h3><code>{method.upper()}</code> {escape(path)}</h3>"
    return f"<article>{title}<p>{text}</p><table>{''.join(rows)}</table></article>"


def docs_page(document: dict[str, Any]) -> Response:
    """The document as plain HTML without scripts."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["Other"])[0]
            groups.setdefault(tag, []).append(operation_html(path, method, operation))
    routes = "".join(
        f"<section><h2>{escape(tag)}</h2>{''.join(parts)}</section>" for tag, parts in groups.items()
    )
    schemas = "".join(
        f'<article id="{escape(name)}"><h3>{escape(name)}</h3>{schema_html(schema)}</article>'
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>StreamChat API</title>'
        '<link rel="stylesheet" href="/page/page.css"><main class="document"><h1>StreamChat API</h1>'
        f"<p>{escape(document['info']['description'])} Any OpenAI client works; for programs:"
        ' <a href="/openapi.json">openapi.json</a>. <a href="/">To the cameras</a>.</p>'
        f"<pre>{escape(EXAMPLE)}</pre>{routes}{REALTIME}<section><h2>Shapes</h2>{schemas}</section></main></html>"
    )
