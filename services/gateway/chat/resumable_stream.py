"""Streamed answers that a client can go on reading after it lost its connection, with the header `Last-Event-ID`."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from services.access.shared_places import SharedPlaces
from services.gateway.open_stream import OpenStream
from services.messages.api_error import ApiError

GO_ON_S = 10.0  # an answer without a reader is made for this long
KEEP_S = 60.0  # what was made of it is kept for this long
MAX_STREAMS = 64  # in progress, and as many that have ended
MAX_KEPT_BYTES = 2**19  # of one stream; further events wait until earlier ones are read
KEEP_ALIVE_S = (
    15.0  # a comment is sent after this time without an event, so that proxies keep the stream open
)
KEEP_ALIVE = b": still here\n\n"
EVENT_ID = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,8})", re.ASCII)

ABANDONED = ApiError(410, "answer_abandoned", f"the answer ended here: nobody read it for {GO_ON_S:.0f} s")
TAKEN_OVER = ApiError(409, "stream_taken_over", "another connection reads this answer now")
GONE = (
    "got a Last-Event-ID that is not kept here for this key and question, wanted one of an answer that this gateway "
    f"made and whose reader left less than {KEEP_S:.0f} s ago: without Last-Event-ID the question is asked anew"
)


def question_hash(value: Any) -> bytes:
    """Tells whether two requests ask the same. `value` is the JSON of the body."""
    return hashlib.sha256(to_json(value)).digest()


class ResumableStream:
    """The numbered events of one answer. They are made whether or not somebody reads, for a while."""

    def __init__(
        self,
        stream_id: str,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], Awaitable[None]],
        on_end: Callable[[], None],
        on_expiry: Callable[[], object],
        headers: dict[str, str],
    ) -> None:
        """`close` ends the answer behind the events.

        `on_end` is called after the last event, `on_expiry` when nobody has read for KEEP_S.
        """
        self.ended = False
        self._id, self._headers = stream_id, headers
        self._on_end, self._on_expiry = on_end, on_expiry
        self._kept: deque[bytes] = deque()
        self._num_bytes = 0
        self._num_dropped = 0  # events before the kept ones
        self._num_read = 0  # events that the newest reader has taken
        self._reader = 0  # number of the newest reader; earlier ones end
        self._event_came, self._event_read = asyncio.Event(), asyncio.Event()
        self._timers: list[asyncio.TimerHandle] = []
        self._making = asyncio.create_task(self._make(events, close))

    def has(self, number: int) -> bool:
        """Whether all events after this one are kept or to come."""
        return self._num_dropped <= number <= self._num_made

    def response(self, *, after: int) -> OpenStream:
        """The events after that number. Whoever reads them until now is told to end."""
        self._stop_timers()
        self._reader += 1
        self._num_read = after
        self._event_came.set()
        reader = self._reader

        async def leave() -> None:
            if reader == self._reader:
                self._start_timers()

        events = self._read(reader)
        return OpenStream(events, close=leave, media_type="text/event-stream", headers=self._headers)

    async def close(self) -> None:
        """End the answer. Nobody can resume it any more."""
        self._stop_timers()
        self._making.cancel()
        await asyncio.gather(self._making, return_exceptions=True)

    @property
    def _num_made(self) -> int:
        return self._num_dropped + len(self._kept)

    async def _read(self, reader: int) -> AsyncGenerator[bytes, None]:
        while reader == self._reader:
            if self._num_read < self._num_made:
                event = self._kept[self._num_read - self._num_dropped]
                self._num_read += 1
                self._event_read.set()
                yield event
            elif self.ended:
                return
            else:
                self._event_came.clear()
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await self._event_came.wait()
                except TimeoutError:
                    yield KEEP_ALIVE
        yield TAKEN_OVER.event().encode()

    async def _make(self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        try:
            async for event in events:
                if event != KEEP_ALIVE:
                    await self._make_room()
                    self._put(event)
        except asyncio.CancelledError:
            self._put(ABANDONED.event().encode())
        finally:
            await events.aclose()
            await close()
            self.ended = True
            self._event_came.set()
            self._on_end()

    async def _make_room(self) -> None:
        """Drop events that were read. Waits if there are none."""
        while self._num_bytes >= MAX_KEPT_BYTES:
            if self._num_read > self._num_dropped:
                self._num_bytes -= len(self._kept.popleft())
                self._num_dropped += 1
            else:
                self._event_read.clear()
                await self._event_read.wait()

    def _put(self, event: bytes) -> None:
        numbered = f"id: {self._id}.{self._num_made + 1}\n".encode() + event
        self._kept.append(numbered)
        self._num_bytes += len(numbered)
        self._event_came.set()

    def _start_timers(self) -> None:
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(GO_ON_S, self._making.cancel),
            loop.call_later(KEEP_S, self._on_expiry),
        ]

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = []


class ResumableStreams:
    """The resumable streams of a gateway: a bounded number in progress, and the newest of those that have ended."""

    def __init__(self) -> None:
        self._places = SharedPlaces(MAX_STREAMS, what="resumable answers", code="too_many_resumable_answers")
        self._streams: dict[str, tuple[str | None, bytes, ResumableStream]] = {}  # with key id and question

    def open(
        self,
        stream_id: str,
        key_id: str | None,
        question: bytes,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], Awaitable[None]],
        headers: dict[str, str],
    ) -> Response:
        """Start a stream. Raises ApiError 429 if too many are in progress."""
        self._places.take(key_id)
        stream = ResumableStream(
            stream_id,
            events,
            close=close,
            on_end=lambda: self._end(key_id),
            on_expiry=lambda: self._streams.pop(stream_id, None),
            headers=headers,
        )
        self._streams[stream_id] = key_id, question, stream
        return stream.response(after=0)

    def resume(self, key_id: str | None, question: bytes, last_event_id: str) -> Response:
        """The rest of a stream, after that event.

        Raises ApiError 400 if it is no id of an event, 410 if it is not kept here for this key and question.
        """
        parts = EVENT_ID.fullmatch(last_event_id)
        if parts is None:
            message = f"got the Last-Event-ID {last_event_id[:80]!r}, wanted the id of an event"
            raise ApiError(400, "invalid_event_id", message, param="Last-Event-ID")
        owner, asked, stream = self._streams.get(parts[1], (None, b"", None))
        after = int(parts[2])
        if stream is None or owner != key_id or asked != question or not stream.has(after):
            raise ApiError(410, "stream_gone", GONE)
        return stream.response(after=after)

    async def close(self) -> None:
        """End all streams."""
        await asyncio.gather(*(stream.close() for _, _, stream in self._streams.values()))
        self._streams.clear()

    def _end(self, key_id: str | None) -> None:
        self._places.give_back(key_id)
        ended = [stream_id for stream_id, (_, _, stream) in self._streams.items() if stream.ended]
        for stream_id in ended[:-MAX_STREAMS]:
            del self._streams[stream_id]
