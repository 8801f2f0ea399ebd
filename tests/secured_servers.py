"""Kafka and Redis as on a secured network: TLS, and one user with a password.

The broker and the store are the real ones; a TLS proxy stands in front of each. The store knows its users itself. The
broker does not, so its proxy requires SCRAM-SHA-512 (RFC 5802) in Kafka's own requests before it forwards anything.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import ipaddress
import secrets
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import Redis

from services.adapters.redis_frame_store import ACL_RULES
from services.local.embedded_servers import HOST, free_port, start_broker, start_store

API_VERSIONS, SASL_HANDSHAKE, SASL_AUTHENTICATE = 18, 17, 36
MECHANISM = "SCRAM-SHA-512"
ITERATIONS = 4096
UNSUPPORTED_VERSION, UNSUPPORTED_MECHANISM, AUTHENTICATION_FAILED = 35, 33, 58

# Talks with a new client and returns whether it is authenticated.
Authenticate = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class SecuredServers:
    """Their addresses and credentials."""

    kafka: str  # host:port, SASL_SSL
    redis_url: str
    username: str
    password: str
    authority: Path  # certificate, PEM


@contextmanager
def secured_servers() -> Generator[SecuredServers]:
    """Start both, each behind its proxy."""
    username, password = "frame-fifo", secrets.token_hex(16)
    kafka_port, redis_port = free_port(), free_port()
    broker, store = start_broker(advertised_port=kafka_port), start_store()
    with tempfile.TemporaryDirectory() as folder, Redis(port=store.port) as redis:
        redis.execute_command("ACL", "SETUSER", username, "on", f">{password}", *ACL_RULES.split())
        redis.acl_setuser("default", enabled=False)
        authority, context = certificates(Path(folder))
        apis = with_sasl(api_versions(broker.port))

        async def scram(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            return await authenticate_kafka(reader, writer, apis, Scram(username, password))

        proxies = {kafka_port: (broker.port, scram), redis_port: (store.port, None)}
        try:
            with tls_proxies(proxies, context):
                url = f"rediss://{HOST}:{redis_port}/0"
                yield SecuredServers(f"{HOST}:{kafka_port}", url, username, password, authority)
        finally:
            broker.stop()
            store.stop()


def certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The certificate of a new authority (its path), and a TLS server context with a certificate from it."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        by: ec.EllipticCurvePrivateKey,
        *,
        authority: bool,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
            )
        )
        if not authority:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_file, pair_file = folder / "ca.crt", folder / "server.pem"
    authority_file.write_bytes(certificate("tests", root, "tests", root, authority=True))
    secret = server.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair_file.write_bytes(secret + certificate("server", server, "tests", root, authority=False))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pair_file)
    return authority_file, context


@contextmanager
def tls_proxies(
    proxies: Mapping[int, tuple[int, Authenticate | None]], context: ssl.SSLContext
) -> Generator[None]:
    """Serve TLS on each port and forward authenticated clients to another port."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        closing = asyncio.Event()
        async with AsyncExitStack() as cleanup:
            for listen_port, (port, authenticate) in proxies.items():
                server = await asyncio.start_server(
                    _proxy(port, authenticate), HOST, listen_port, ssl=context
                )
                cleanup.callback(server.close)
            started.set_result((asyncio.get_running_loop(), closing))
            await closing.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="TLS proxies", daemon=True)
    thread.start()
    loop, closing = started.result(30.0)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join(30.0)


def _proxy(
    port: int, authenticate: Authenticate | None
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if authenticate is None or await authenticate(reader, writer):
                inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
                both = [_forward(reader, inner_writer), _forward(inner_reader, writer)]
                await asyncio.wait(
                    [asyncio.ensure_future(direction) for direction in both], return_when="FIRST_COMPLETED"
                )
                inner_writer.close()
        writer.close()

    return serve


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()


def api_versions(port: int) -> list[tuple[int, int, int]]:
    """The APIs that the broker knows, each with its oldest and newest version."""
    request = struct.pack(">hhih", API_VERSIONS, 0, 1, 2) + b"up"
    with socket.create_connection((HOST, port), timeout=5.0) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        size = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))[0]
        response = connection.recv(size, socket.MSG_WAITALL)
    return list(struct.iter_unpack(">hhh", response[10 : 10 + 6 * struct.unpack(">i", response[6:10])[0]]))


def with_sasl(apis: list[tuple[int, int, int]]) -> bytes:
    """The oldest form of an ApiVersions response, with the requests that the proxy answers itself."""
    ours = [(API_VERSIONS, 0, 0), (SASL_HANDSHAKE, 0, 1), (SASL_AUTHENTICATE, 0, 1)]
    rows = [row for row in apis if row[0] not in [key for key, *_ in ours]] + ours
    return struct.pack(">i", len(rows)) + b"".join(struct.pack(">hhh", *row) for row in rows)


async def authenticate_kafka(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, apis: bytes, scram: Scram
) -> bool:
    """Answer like a broker until the client has proved that it knows the password. False when it does not."""
    while True:
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        request = await reader.readexactly(size)
        api, version, correlation, client = struct.unpack(">hhih", request[:10])
        body = request[10 + max(0, client) :]
        response, authenticated = _respond(api, version, body, apis, scram)
        writer.write(struct.pack(">ii", 4 + len(response), correlation) + response)
        await writer.drain()
        if authenticated is not None:
            return authenticated


def _respond(api: int, version: int, body: bytes, apis: bytes, scram: Scram) -> tuple[bytes, bool | None]:
    """The response to a request before authentication, and whether the client is authenticated (None: not yet)."""
    if api == API_VERSIONS:
        # Newer clients then ask again in the oldest form.
        return struct.pack(">h", UNSUPPORTED_VERSION if version else 0) + apis, None
    if api == SASL_HANDSHAKE:
        known = body[2:].decode() == MECHANISM
        head = struct.pack(">hih", 0 if known else UNSUPPORTED_MECHANISM, 1, len(MECHANISM))
        return head + MECHANISM.encode(), None if known else False
    if api != SASL_AUTHENTICATE:
        return b"", False  # nothing else is answered before authentication
    try:
        reply, done = scram.step(body[4:].decode())
    except (PermissionError, ValueError):
        return struct.pack(">hhi", AUTHENTICATION_FAILED, -1, 0) + (
            struct.pack(">q", 0) if version else b""
        ), False
    lifetime = struct.pack(">q", 0) if version else b""
    return struct.pack(">hhi", 0, -1, len(reply)) + reply.encode() + lifetime, True if done else None


class Scram:
    """The server's side of SCRAM-SHA-512 for one user. PermissionError for any other."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._salt = secrets.token_bytes(16)
        self._salted = hashlib.pbkdf2_hmac("sha512", password.encode(), self._salt, ITERATIONS)
        self._messages: list[str] = []

    def step(self, message: str) -> tuple[str, bool]:
        """The reply to the client's first or last message, and whether that was the last."""
        if not self._messages:
            bare = message.removeprefix("n,,")
            fields = dict(part.split("=", 1) for part in bare.split(","))
            if fields["n"] != self._username:
                raise PermissionError(fields["n"])
            nonce = fields["r"] + secrets.token_hex(12)
            first = f"r={nonce},s={base64.b64encode(self._salt).decode()},i={ITERATIONS}"
            self._messages = [bare, first]
            return first, False
        without_proof, _, proof = message.rpartition(",p=")
        signed = ",".join([*self._messages, without_proof]).encode()
        client_key = hmac.digest(self._salted, b"Client Key", "sha512")
        signature = hmac.digest(hashlib.sha512(client_key).digest(), signed, "sha512")
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        if not hmac.compare_digest(expected, base64.b64decode(proof)):
            raise PermissionError(self._username)
        server_key = hmac.digest(self._salted, b"Server Key", "sha512")
        return f"v={base64.b64encode(hmac.digest(server_key, signed, 'sha512')).decode()}", True
