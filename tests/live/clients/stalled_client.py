"""Clients that start a request and then stop reading. Their connections stay open."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

from tests.live.clients.live_stack import MODEL, PATIENCE_S, LiveStack, camera_part, question_about


def stalled_answer(live: LiveStack, camera: str, *, num_tokens: int) -> socket.socket:
    """Stop reading an answer about the camera."""
    question = {
        "model": MODEL,
        "messages": question_about(camera_part(camera)),
        "max_tokens": num_tokens,
        "stream": True,
    }
    body = json.dumps(question)
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    return _open(live, "POST /v1/chat/completions", f"{headers}\r\n\r\n{body}")


def stalled_pictures(live: LiveStack) -> socket.socket:
    """Stop reading the endless stream of all cameras' pictures."""
    return _open(live, "GET /v1/pictures", "\r\n")


def _open(live: LiveStack, route: str, rest: str) -> socket.socket:
    address = urlsplit(live.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # buffer almost nothing
    connection.settimeout(PATIENCE_S)
    connection.connect((address.hostname, address.port))
    connection.sendall(f"{route} HTTP/1.1\r\nHost: {address.netloc}\r\n{rest}".encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection
