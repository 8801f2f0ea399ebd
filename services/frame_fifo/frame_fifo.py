"""FrameFifo: from the video log to every camera's FIFO of encoded frames.

A thread reads and decodes (`CameraWatch`); here the sampled frames of all cameras are encoded together and stored.
While one call is in flight newer frames gather, at most two a camera, and what grew old is passed over for a newer one:
under load the oldest are dropped and counted, so the age of what is stored stays bounded. Neither a lost store nor a
lost encoder ends the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

from model.config import StreamChatConfig
from services.clip_player.clip_decoder import ClipLimits
from services.clip_player.clip_process import decode_apart
from services.frame_fifo.camera_decoder import SampledFrame
from services.frame_fifo.camera_watch import CameraWatch
from services.frame_fifo.metrics import Counters, Tally
from services.messages.video import ClipRefused, Frame, PlayedClip, VisualTokens
from services.ports.frame_store import PRIVATE_PREFIX, FrameStore, StoreLost
from services.ports.recorder import MetricsRecorder
from services.ports.video_log import VideoReader
from services.settings import Settings

log = logging.getLogger(__name__)

PENDING_FRAMES = 2  # per camera: the one to encode next, and a newer one
ENCODE_TIMEOUT_S = 10.0
FAILURE_PAUSE_S = 0.25  # before the next try; meanwhile frames gather and are dropped
EXPIRE_EVERY_S = 1.0  # how often a camera's end is put off
ANNOUNCE_EVERY_S = 0.5
MEASURE_EVERY_S = 2.0
CLIPS_AT_ONCE = 2
CLIP_KEPT_S = 300.0

Encode = Callable[[list[bytes]], Awaitable[list[VisualTokens]]]
Pending = tuple[str, SampledFrame]  # camera, frame


class FrameFifo:
    """One replica. `run` until `close`; `play_clip` in between."""

    def __init__(
        self,
        settings: Settings,
        config: StreamChatConfig,
        reader: VideoReader,
        store: FrameStore,
        encode: Encode,
        *,
        recorder: MetricsRecorder | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.encode = encode
        self.capacity = settings.fifo_frames or config.fifo_frames
        self.frames_per_second = settings.frames_per_second or config.frames_per_second
        self.image_size = config.vision.image_size
        self.tally = Tally(recorder)
        self.watch = CameraWatch(
            settings,
            reader,
            self.tally,
            self._offer,
            frames_per_second=self.frames_per_second,
            image_size=self.image_size,
        )
        self._reader = reader
        self._thread = threading.Thread(target=self.watch.run, name="camera-watch", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = asyncio.Event()
        self._offered = asyncio.Event()
        self._lock = threading.Lock()
        self._pending: dict[str, deque[SampledFrame]] = {}
        self._busy: set[str] = set()  # cameras with a frame being encoded: their order must not change
        self._expire_at: dict[str, float] = {}  # monotonic
        self._clips = asyncio.Semaphore(CLIPS_AT_ONCE)
        self._outages: set[str] = set()

    async def run(self) -> None:
        """Watch, encode and store until `close`."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        workers = [asyncio.create_task(self._work()) for _ in range(self.settings.encoder_replicas)]
        workers += [asyncio.create_task(self._announce()), asyncio.create_task(self._measure())]
        try:
            await self._closed.wait()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def close(self) -> None:
        """Stop watching and give the partitions back. Fine to call twice, or without `run`."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.watch.stop()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 10.0)
        await asyncio.to_thread(self._reader.close)

    def health(self) -> Counters:
        """The counts; RuntimeError when the watching thread has ended by itself."""
        if self._loop is not None and not self._closed.is_set() and not self._thread.is_alive():
            raise RuntimeError("the thread that watches the cameras has ended")
        return self.tally.snapshot()

    # -- live frames --

    def _offer(self, camera: str, frame: SampledFrame) -> None:
        """From the watching thread: a frame to be encoded soon, or overtaken."""
        with self._lock:
            waiting = self._pending.setdefault(camera, deque())
            waiting.append(frame)
            overtaken = len(waiting) > PENDING_FRAMES
            if overtaken:
                waiting.popleft()
        if overtaken:
            self.tally.dropped(camera, "overtaken")
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._offered.set)

    def _take_batch(self) -> list[Pending]:
        """Pending frames of cameras that are not being encoded already, at most a batch."""
        batch: list[Pending] = []
        old: list[str] = []
        old_s = time.time() - self.settings.max_lag_s
        with self._lock:
            for camera in [camera for camera in self._pending if camera not in self._busy]:
                waiting = self._pending[camera]
                while waiting and len(batch) < self.settings.encoder_batch:
                    frame = waiting.popleft()
                    if waiting and frame.captured_s < old_s:
                        old.append(camera)
                    else:
                        batch.append((camera, frame))
                if not waiting:
                    del self._pending[camera]  # it joins again at the end: every camera gets its turn
            self._busy |= {camera for camera, _ in batch}
        for camera in old:
            self.tally.dropped(camera, "overtaken")
        return batch

    async def _work(self) -> None:
        while True:
            self._offered.clear()
            batch = self._take_batch()
            if not batch:
                await self._offered.wait()
                continue
            try:
                await self._encode_and_store(batch)
            finally:
                with self._lock:
                    self._busy -= {camera for camera, _ in batch}
                self._offered.set()  # for another worker: these cameras are free again

    async def _encode_and_store(self, batch: list[Pending]) -> None:
        try:
            tokens = await self._encoded([frame.pixels for _, frame in batch])
        except Exception as error:  # whatever a remote encoder raises, the cameras go on
            self._outage("the vision encoder", error)
            for camera, _ in batch:
                self.tally.dropped(camera, "encoder_failed")
            await asyncio.sleep(FAILURE_PAUSE_S)
            return
        self._recovered("the vision encoder")
        try:
            await asyncio.to_thread(self._store, batch, tokens)
        except Exception:
            log.exception("storing frames went wrong, going on")

    async def _encoded(self, pictures: list[bytes]) -> list[VisualTokens]:
        tokens = await asyncio.wait_for(self.encode(pictures), ENCODE_TIMEOUT_S)
        if len(tokens) != len(pictures):
            raise ValueError(f"vision encoder: got {len(tokens)} results, wanted {len(pictures)}")
        return tokens

    def _store(self, batch: list[Pending], tokens: list[VisualTokens]) -> None:
        """Append in order; when the store is lost, the rest of the batch is dropped rather than waited for."""
        for i, ((camera, frame), encoded) in enumerate(zip(batch, tokens, strict=True)):
            try:
                stored = self.store.append(as_frame(camera, frame, encoded), capacity=self.capacity)
                self._put_off_end(camera)
            except StoreLost as error:
                self._outage("the frame store", error)
                for lost, _ in batch[i:]:
                    self.tally.dropped(lost, "store_lost")
                return
            if stored:
                self.tally.stored(camera, frame.captured_s)
            else:
                self.tally.dropped(camera, "replayed")
        self._recovered("the frame store")

    def _put_off_end(self, camera: str) -> None:
        """The camera's frames expire a while after its last one."""
        now = time.monotonic()
        if now >= self._expire_at.get(camera, 0.0):
            self.store.expire(camera, self.settings.forget_after_s)
            self._expire_at = {name: at for name, at in self._expire_at.items() if at > now - 60.0}
            self._expire_at[camera] = now + EXPIRE_EVERY_S

    async def _announce(self) -> None:
        """Tell which cameras send: one without a frame yet is not an unknown one."""
        while True:
            cameras = {camera for _, camera in list(self.watch.cameras)}
            try:
                await asyncio.to_thread(self.store.announce, cameras, self.settings.forget_after_s)
            except StoreLost as error:
                self._outage("the frame store", error)
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _measure(self) -> None:
        """Tell how full the store is. That alone is no reason to do anything."""
        while True:
            try:
                await asyncio.to_thread(self._measure_store)
            except StoreLost:
                pass  # the announcements say so
            except Exception:
                log.exception("the store's fill cannot be measured")
                return
            await asyncio.sleep(MEASURE_EVERY_S)

    def _measure_store(self) -> None:
        entries = {state.camera: state.num_frames for state in self.store.cameras()}
        self.tally.filled(entries, self.capacity, *self.store.memory())

    def _outage(self, what: str, error: BaseException) -> None:
        """Say it once."""
        if what not in self._outages:
            self._outages.add(what)
            log.warning(
                "%s is away, frames are dropped until it is back: %s", what, error or type(error).__name__
            )

    def _recovered(self, what: str) -> None:
        if what in self._outages:
            self._outages.discard(what)
            log.warning("%s is back", what)

    # -- clips --

    async def play_clip(self, media: bytes, kind: str) -> PlayedClip:
        """Put the frames of a clip ("video" or "image") into a private FIFO.

        ClipRefused says what is wrong with it, or what is away.
        """
        limits = ClipLimits(
            frames_per_second=self.frames_per_second,
            capacity=self.capacity,
            image_size=self.image_size,
            max_pixels=self.settings.max_pixels,
            max_bytes=self.settings.max_request_bytes,
            decode_budget_s=self.settings.max_clip_decode_s,
        )
        memory_bytes = self.settings.max_clip_memory_bytes
        async with self._clips:
            frames = await asyncio.to_thread(
                decode_apart, media, kind, limits, end_s=time.time(), memory_bytes=memory_bytes
            )
        camera = f"{PRIVATE_PREFIX}{uuid.uuid4()}"
        size = self.settings.encoder_batch
        for batch in (frames[i : i + size] for i in range(0, len(frames), size)):
            await self._play(camera, batch)
        return PlayedClip(camera=camera, num_frames=len(frames), end_s=frames[-1].captured_s)

    async def _play(self, camera: str, frames: list[SampledFrame]) -> None:
        try:
            tokens = await self._encoded([frame.pixels for frame in frames])
        except Exception as error:
            log.warning("a clip could not be encoded: %s", error)
            raise ClipRefused(503, "encoder_lost", "the clip could not be encoded now; try again") from error
        try:
            await asyncio.to_thread(self._store_clip, camera, frames, tokens)
        except StoreLost as error:
            raise ClipRefused(503, "store_lost", "the clip could not be stored now; try again") from error

    def _store_clip(self, camera: str, frames: list[SampledFrame], tokens: list[VisualTokens]) -> None:
        for frame, encoded in zip(frames, tokens, strict=True):
            self.store.append(as_frame(camera, frame, encoded), capacity=self.capacity)
        self.store.expire(camera, CLIP_KEPT_S)


def as_frame(camera: str, frame: SampledFrame, tokens: VisualTokens) -> Frame:
    """A sampled frame and what the encoder made of it, as the store keeps them."""
    return Frame(
        camera=camera,
        frame_id=frame.frame_id,
        captured_s=frame.captured_s,
        shape=tokens.shape,
        dtype=tokens.dtype,
        visual_tokens=tokens.data,
        jpeg=frame.jpeg(),
    )
