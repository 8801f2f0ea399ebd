"""Kafka and Redis as they are on a guarded network: TLS, a user with a password, and nobody else let in.

The broker and the store are the real ones; in front of each stands a door of TLS. The store knows its users itself.
The broker does not, so its door asks for SCRAM-SHA-512 (RFC 5802) in Kafka's own requests before it lets anything by.
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

Gate = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]  # whether somebody is let in


@dataclass(frozen=True, slots=True)
class SecuredServers:
    """Where they are, and what opens them."""

    kafka: str  # host:port, SASL_SSL
    redis_url: str
    username: str
    password: str
    authority: Path  # certificate, PEM


@contextmanager
def secured_servers() -> Generator[SecuredServers]:
    """Start both, each behind its door."""
    username, password = "frame-fifo", secrets.token_hex(16)
    kafka_port, redis_port = free_port(), free_port()
    broker, store = start_broker(advertised_port=kafka_port), start_store()
    with tempfile.TemporaryDirectory() as folder, Redis(port=store.port) as redis:
        redis.execute_command("ACL", "SETUSER", username, "on", f">{password}", *ACL_RULES.split())
        redis.acl_setuser("default", enabled=False)
        authority, context = certificates(Path(folder))
        apis = with_sasl(api_versions(broker.port))

        async def scram(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            return await kafka_gate(reader, writer, apis, Scram(username, password))

        doors = {kafka_port: (broker.port, scram), redis_port: (store.port, None)}
        try:
            with open_doors(doors, context):
                url = f"rediss://{HOST}:{redis_port}/0"
                yield SecuredServers(f"{HOST}:{kafka_port}", url, username, password, authority)
        finally:
            broker.stop()
            store.stop()


def certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority of our own (its certificate's path), and a server's side of TLS with a certificate of its."""
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
def open_doors(doors: Mapping[int, tuple[int, Gate | None]], context: ssl.SSLContext) -> Generator[None]:
    """Serve each port with TLS, passing what its gate lets in on to another port."""
    opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        closing = asyncio.Event()
        async with AsyncExitStack() as ending:
            for listen, (port, gate) in doors.items():
                server = await asyncio.start_server(_door(port, gate), HOST, listen, ssl=context)
                ending.callback(server.close)
            opened.set_result((asyncio.get_running_loop(), closing))
            await closing.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="doors", daemon=True)
    thread.start()
    loop, closing = opened.result(30.0)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join(30.0)


def _door(
    port: int, gate: Gate | None
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if gate is None or await gate(reader, writer):
                inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
                both = [_pass(reader, inner_writer), _pass(inner_reader, writer)]
                await asyncio.wait(
                    [asyncio.ensure_future(one) for one in both], return_when="FIRST_COMPLETED"
                )
                inner_writer.close()
        writer.close()

    return serve


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()


def api_versions(port: int) -> list[tuple[int, int, int]]:
    """What the broker speaks: each API with its oldest and newest version."""
    question = struct.pack(">hhih", API_VERSIONS, 0, 1, 2) + b"up"
    with socket.create_connection((HOST, port), timeout=5.0) as connection:
        connection.sendall(struct.pack(">i", len(question)) + question)
        size = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))[0]
        answer = connection.recv(size, socket.MSG_WAITALL)
    return list(struct.iter_unpack(">hhh", answer[10 : 10 + 6 * struct.unpack(">i", answer[6:10])[0]]))


def with_sasl(apis: list[tuple[int, int, int]]) -> bytes:
    """The oldest form of the answer to ApiVersions, with the requests that the door answers itself."""
    ours = [(API_VERSIONS, 0, 0), (SASL_HANDSHAKE, 0, 1), (SASL_AUTHENTICATE, 0, 1)]
    rows = [row for row in apis if row[0] not in [key for key, *_ in ours]] + ours
    return struct.pack(">i", len(rows)) + b"".join(struct.pack(">hhh", *row) for row in rows)


async def kafka_gate(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, apis: bytes, scram: Scram
) -> bool:
    """Talk as a broker does until somebody has shown that they know the password; False when they do not."""
    while True:
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        request = await reader.readexactly(size)
        api, version, correlation, client = struct.unpack(">hhih", request[:10])
        body = request[10 + max(0, client) :]
        answer, done = _answer(api, version, body, apis, scram)
        writer.write(struct.pack(">ii", 4 + len(answer), correlation) + answer)
        await writer.drain()
        if done is not None:
            return done


def _answer(api: int, version: int, body: bytes, apis: bytes, scram: Scram) -> tuple[bytes, bool | None]:
    """The answer to a request before the door, and whether that settles it."""
    if api == API_VERSIONS:
        # Newer clients are told to ask again in the oldest form.
        return struct.pack(">h", UNSUPPORTED_VERSION if version else 0) + apis, None
    if api == SASL_HANDSHAKE:
        known = body[2:].decode() == MECHANISM
        told = struct.pack(">hih", 0 if known else UNSUPPORTED_MECHANISM, 1, len(MECHANISM))
        return told + MECHANISM.encode(), None if known else False
    if api != SASL_AUTHENTICATE:
        return b"", False  # nothing else is answered before the door
    try:
        said, done = scram.step(body[4:].decode())
    except (PermissionError, ValueError):
        return struct.pack(">hhi", AUTHENTICATION_FAILED, -1, 0) + (
            struct.pack(">q", 0) if version else b""
        ), False
    lifetime = struct.pack(">q", 0) if version else b""
    return struct.pack(">hhi", 0, -1, len(said)) + said.encode() + lifetime, True if done else None


class Scram:
    """The server's side of SCRAM-SHA-512 for one user. PermissionError for anybody else."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._salt = secrets.token_bytes(16)
        self._salted = hashlib.pbkdf2_hmac("sha512", password.encode(), self._salt, ITERATIONS)
        self._said: list[str] = []

    def step(self, message: str) -> tuple[str, bool]:
        """The answer to the client's first or last message, and whether that was the last."""
        if not self._said:
            bare = message.removeprefix("n,,")
            fields = dict(part.split("=", 1) for part in bare.split(","))
            if fields["n"] != self._username:
                raise PermissionError(fields["n"])
            nonce = fields["r"] + secrets.token_hex(12)
            first = f"r={nonce},s={base64.b64encode(self._salt).decode()},i={ITERATIONS}"
            self._said = [bare, first]
            return first, False
        without_proof, _, proof = message.rpartition(",p=")
        signed = ",".join([*self._said, without_proof]).encode()
        client_key = hmac.digest(self._salted, b"Client Key", "sha512")
        signature = hmac.digest(hashlib.sha512(client_key).digest(), signed, "sha512")
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        if not hmac.compare_digest(expected, base64.b64decode(proof)):
            raise PermissionError(self._username)
        server_key = hmac.digest(self._salted, b"Server Key", "sha512")
        return f"v={base64.b64encode(hmac.digest(server_key, signed, 'sha512')).decode()}", True
