"""FrameFifo: from the video log to a FIFO of encoded frames for each camera.

A thread reads and decodes (`CameraReader`). Here the sampled frames of all cameras are encoded together and stored.
While one call is in flight newer frames gather, at most two per camera, and a newer frame replaces an old one: under
load the oldest frames are dropped and counted, so the age of stored frames stays bounded. The loop survives a lost
store and a lost encoder.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from model.config import StreamChatConfig
from services.frame_fifo.camera_reader import CameraReader
from services.frame_fifo.metrics import FrameFifoCounts, FrameFifoMetrics
from services.frame_fifo.pending_frames import CameraFrame, PendingFrames
from services.frame_fifo.topic_bindings import TopicBindings
from services.messages.video import VisualTokens
from services.ports.frame_store import FrameStore, StoreFull, StoreLost
from services.ports.recorder import MetricsRecorder
from services.ports.video_log import VideoReader
from services.ports.vision_encoder import Encode, encode_checked
from services.settings import Settings
from services.video.sampled_frame import SampledFrame

log = logging.getLogger(__name__)

RETRY_S = 0.25  # after a failure; meanwhile frames gather and are dropped
ANNOUNCE_EVERY_S = 0.5
MEASURE_EVERY_S = 2.0


class FrameFifo:
    """One replica: `run` until `close`."""

    def __init__(
        self,
        settings: Settings,
        config: StreamChatConfig,
        reader: VideoReader,
        store: FrameStore,
        encode: Encode,
        *,
        recorder: MetricsRecorder,
    ) -> None:
        self._settings = settings
        self._store = store
        self._encode = encode
        self._capacity = settings.fifo_frames or config.fifo_frames
        self._metrics = FrameFifoMetrics(recorder)
        self._bindings = TopicBindings(settings, store)
        self._cameras = CameraReader(
            settings,
            reader,
            self._bindings,
            self._metrics,
            self._put,
            frames_per_second=settings.frames_per_second or config.frames_per_second,
            image_size=config.vision.image_size,
        )
        self._reader = reader
        self._thread = threading.Thread(target=self._cameras.run, name="camera-reader", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = asyncio.Event()
        self._has_pending = asyncio.Event()
        self._pending = PendingFrames()
        self._outages: set[str] = set()

    async def run(self) -> None:
        """Read, encode and store until `close`."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        workers = [asyncio.create_task(self._work()) for _ in range(self._settings.encoder_replicas)]
        workers += [asyncio.create_task(self._announce()), asyncio.create_task(self._measure())]
        try:
            await self._closed.wait()
        finally:
            # Again, if need be: the wait_for around the encoder loses a cancellation that comes as a batch is done.
            while running := [worker for worker in workers if not worker.done()]:
                for worker in running:
                    worker.cancel()
                await asyncio.wait(running, timeout=1.0)
            await asyncio.gather(*workers, return_exceptions=True)

    async def close(self) -> None:
        """Stop reading and leave the consumer group. May be called twice, or without `run`."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._cameras.stop()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 10.0)
        await asyncio.to_thread(self._reader.close)

    def check(self) -> None:
        """RuntimeError when the reading thread has ended by itself, or reads nothing although records wait."""
        if self._loop is None or self._closed.is_set():
            return
        if not self._thread.is_alive():
            raise RuntimeError("the thread that reads the cameras has ended")
        self._cameras.check()

    def counts(self) -> FrameFifoCounts:
        """The counts since the start."""
        return self._metrics.counts()

    def _put(self, camera: str, frame: SampledFrame) -> None:
        """Called by the reading thread: a frame to be encoded soon."""
        if self._pending.put(camera, frame):
            self._metrics.frame_dropped(camera, "overtaken")
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._has_pending.set)

    async def _work(self) -> None:
        while True:
            self._has_pending.clear()
            oldest_s = time.time() - self._settings.max_lag_s
            batch, dropped = self._pending.take_batch(self._settings.encoder_batch, oldest_s)
            for camera in dropped:
                self._metrics.frame_dropped(camera, "overtaken")
            if not batch:
                await self._has_pending.wait()
                continue
            try:
                await self._encode_and_store(batch)
            finally:
                self._pending.release(camera for camera, _ in batch)
                self._has_pending.set()  # for another worker: these cameras are free again

    async def _encode_and_store(self, batch: list[CameraFrame]) -> None:
        try:
            tokens = await encode_checked(self._encode, [frame.pixels for _, frame in batch])
        except Exception as error:  # whatever a remote encoder raises, the cameras go on
            self._report_outage("the vision encoder", error)
            for camera, _ in batch:
                self._metrics.frame_dropped(camera, "encoder_failed")
            await asyncio.sleep(RETRY_S)
            return
        self._report_recovery("the vision encoder")
        try:
            await asyncio.to_thread(self._append, batch, tokens)
        except Exception:
            log.exception("frames could not be stored")

    def _append(self, batch: list[CameraFrame], tokens: list[VisualTokens]) -> None:
        """Append in order. A frame that finds no store or no room is dropped: nothing waits for it."""
        lost = False
        for (camera, frame), encoded in zip(batch, tokens, strict=True):
            try:
                stored = self._store.append(
                    frame.to_frame(camera, encoded),
                    capacity=self._capacity,
                    keep_s=self._settings.forget_after_s,
                )
            except StoreLost as error:
                self._report_outage("the frame store", error)
                full = isinstance(error, StoreFull)
                self._metrics.frame_dropped(camera, "store_full" if full else "store_lost")
                lost = True
                continue
            if stored:
                self._metrics.frame_stored(camera, frame.captured_s)
            else:
                self._metrics.frame_dropped(camera, "replayed")
        if not lost:
            self._report_recovery("the frame store")

    async def _announce(self) -> None:
        """Tell the store which cameras send, also those without a frame yet, and keep their topics theirs."""
        while True:
            try:
                await asyncio.to_thread(
                    self._store.announce, self._cameras.notes(), self._settings.forget_after_s
                )
                await asyncio.to_thread(self._bindings.renew, self._cameras.sources())
            except StoreLost as error:
                self._report_outage("the frame store", error)
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _measure(self) -> None:
        """Report how full the store is. An error here stops nothing else."""
        while True:
            try:
                await asyncio.to_thread(self._measure_store)
            except StoreLost:
                pass  # `_announce` reports it
            except Exception:
                log.exception("the fill of the store cannot be measured")
                return
            await asyncio.sleep(MEASURE_EVERY_S)

    def _measure_store(self) -> None:
        cameras = self._store.cameras(self._cameras.notes())  # its own: other replicas report theirs
        entries = {state.camera: state.num_frames for state in cameras}
        self._metrics.update_store(entries, self._capacity, *self._store.memory())

    def _report_outage(self, service: str, error: BaseException) -> None:
        """Log the start of an outage once."""
        if service not in self._outages:
            self._outages.add(service)
            log.warning(
                "%s is away, frames are dropped until it is back: %s", service, error or type(error).__name__
            )

    def _report_recovery(self, service: str) -> None:
        if service in self._outages:
            self._outages.discard(service)
            log.warning("%s is back", service)
