"""Files that try to make a decoder fetch addresses, exhaust memory or crash; and a server that notices a fetch."""

from __future__ import annotations

import io
import socket
import struct
import threading
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import av
from PIL import Image

from tests.services.h264 import clip, mjpeg_bomb


class Bait:
    """A server on this machine that counts connections."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.num_visits = 0
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/secret.ts"
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        with suppress(OSError):  # closed
            while True:
                self._listener.accept()[0].close()
                self.num_visits += 1


@contextmanager
def bait() -> Generator[Bait]:
    """A server whose address must not be fetched."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Bait(listener)
        listener.shutdown(socket.SHUT_RDWR)


def fetchers(url: str) -> dict[str, bytes]:
    """Files that refer to the address, or to files of this machine, as their parts."""
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n"
    dash = f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
        mediaPresentationDuration="PT10S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
        <AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1.42c01e" width="64"
        height="64"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"""
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{url}\nm=video 9 RTP/AVP 96\n"
    return {
        "hls": hls.encode(),
        "hls with a file": hls.replace(url, "file:///etc/passwd").encode(),
        "hls behind a key": hls.replace(
            "#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF'
        ).encode(),
        "concat": f"ffconcat version 1.0\nfile '{url}'\n".encode(),
        "concat with a file": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "concat in a protocol": f"concat:{url}|/etc/passwd".encode(),
        "dash": dash.encode(),
        "sdp": sdp.encode(),
        "smooth streaming": f'<SmoothStreamingMedia><A Url="{url}"/></SmoothStreamingMedia>'.encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode(),
        "playlist": f"[playlist]\nFile1={url}\n".encode(),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    }


def png(width: int, height: int, *, extra: bytes = b"", rows: bytes = b"") -> bytes:
    """A PNG whose header claims that size, with extra chunks before its data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def zipped_text(num_bytes: int = 2**28) -> bytes:
    """A compressed text chunk of a PNG: some hundred kilobytes that expand to `num_bytes`."""
    squeezed = zlib.compress(bytes(num_bytes), 9)
    data = b"Comment\x00\x00" + squeezed
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


def bombs() -> dict[str, tuple[str, bytes]]:
    """Kind and bytes of files that are small and expand to a huge size."""
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    return {
        "png of many pixels": ("image", png(60_000, 60_000, rows=bytes(2**20))),
        "png with much text": ("image", png(8, 8, extra=zipped_text(), rows=bytes(200))),
        "png with one pixel's data too much": ("image", png(8, 8, rows=bytes(2**28))),
        "gif of many pixels": (
            "image",
            gif + b",\0\0\0\0" + struct.pack("<HH", 65535, 65535) + b"\0\x08\x01;",
        ),
        "jpeg of many pixels": ("image", mjpeg_bomb()),
        "video of many pixels": ("video", clip(1, size=(4800, 2600))),
        "mjpeg of many pixels": ("video", mjpeg_video()),
    }


def mjpeg_video() -> bytes:
    """An AVI of small pictures, one of which claims a huge size."""
    video = bytearray(clip(5, container="avi", codec="mjpeg"))
    at = video.rindex(b"\xff\xc0") + 5
    video[at : at + 4] = (12_000).to_bytes(2, "big") * 2
    return bytes(video)


def foreign_codecs() -> dict[str, tuple[str, bytes]]:
    """Kind and bytes of valid files whose decoders have had security bugs and that no clip needs."""
    found: dict[str, tuple[str, bytes]] = {}
    for format in ("JPEG2000", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), "red").save(file, format)
        found[format] = ("image", file.getvalue())
    for codec in ("jpeg2000", "mpeg1video"):
        found[codec] = ("video", video_of(codec))
    return found


def video_of(codec: str) -> bytes:
    """A Matroska of one picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream: Any = out.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 64
        stream.pix_fmt = "yuv420p"
        out.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        out.mux(stream.encode(None))
    return file.getvalue()


def damaged_videos() -> dict[str, bytes]:
    """Videos that are truncated or damaged in many places."""
    whole = clip(30)
    videos = {f"cut at {share}/8": whole[: len(whole) * share // 8] for share in range(1, 8)}
    for seed in range(6):
        damaged = bytearray(whole)
        for at in range(seed * 37, len(damaged), 211):
            damaged[at] ^= 0x5A
        videos[f"damaged {seed}"] = bytes(damaged)
    box = io.BytesIO(whole)
    videos["nested"] = b"\x00\x00\x00\x08moov" * 50_000 + box.getvalue()
    return videos
