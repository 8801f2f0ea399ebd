"""An engine full of cameras and dialogs, used only through its public methods."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.engine.pages import camera_bytes, token_bytes
from model.network.streamchat import StreamChat
from tests.bench.measure.machine import now
from tests.bench.measure.shapes import make_frames, make_text

FPS = 5.0
PAGE = 64  # tokens of text in a page


@dataclass(slots=True)
class DecodeTimes:
    """Times measured while decoding."""

    gaps_s: list[float] = field(default_factory=list[float])  # between tokens
    waits_s: list[float] = field(
        default_factory=list[float]
    )  # from a frame's arrival to the first word after it


class LoadedEngine:
    """`dialogs` spread evenly over `cameras` with full rings. Each step makes one token for every dialog."""

    def __init__(
        self, model: StreamChat, *, cameras: int, dialogs: int, prompt: int = 64, answer: int = 256
    ) -> None:
        """`prompt` and `answer`: tokens for which every dialog has memory. `start_dialogs` opens the dialogs."""
        self.model, self.prompt, self.answer = model, prompt, answer
        width = model.dtype.itemsize
        tokens = dialogs * (
            prompt + answer + 4 * PAGE
        )  # the engine sets whole pages aside, and some in reserve
        rings = cameras * camera_bytes(model.config, width)
        self.engine = Engine(
            model,
            max_dialogs=dialogs,
            max_cameras=cameras,
            cache_bytes=rings + tokens * token_bytes(model.config, width),
            page_tokens=PAGE,
        )
        self.cameras = [f"camera-{number}" for number in range(cameras)]
        self.names = [f"dialog-{number}" for number in range(dialogs)]
        self.features = make_frames(model, model.config.fifo_frames)
        self.num_frames = self.num_steps = 0
        for camera in self.cameras:
            self.engine.add_camera(camera)
            for _ in range(model.config.fifo_frames):
                self.add_frame(camera)

    def start_dialogs(self) -> None:
        """Open all dialogs, each with a new question."""
        self.num_steps = 0
        for number, name in enumerate(self.names):
            if name in self.engine.dialogs:
                self.engine.close_dialog(name)
            question = make_text(self.model, self.prompt, seed=number)
            camera = self.cameras[number % len(self.cameras)]
            self.engine.open_dialog(name, camera, question, DialogOptions(max_tokens=self.answer))

    @property
    def text_read_bytes(self) -> int:
        """Keys and values of all dialogs' text that the next step reads."""
        token = token_bytes(self.model.config, self.model.dtype.itemsize)
        return token * len(self.names) * (self.prompt + self.num_steps)

    def add_frame(self, camera: str) -> None:
        """Add a frame to a camera and process it at once."""
        self._enqueue(camera)
        self.engine.add_frames(camera, [])

    def add_frame_everywhere(self) -> None:
        """Add a frame to every camera and process all of them at once."""
        for camera in self.cameras:
            self._enqueue(camera)
        self.engine.add_frames(self.cameras[0], [])

    def step(self) -> None:
        """One token for every dialog."""
        self.engine.step(self.names)
        self.num_steps += 1

    def decode_for(self, seconds: float, frames_per_second: float) -> DecodeTimes:
        """Start all dialogs and decode at full speed, while each camera gets frames at this rate (0: none)."""
        self.start_dialogs()
        times = DecodeTimes()
        begin = last = time.perf_counter()
        before = now()
        share = 1 / max(frames_per_second * len(self.cameras), 1e-9)
        due = {camera: begin + number * share for number, camera in enumerate(self.cameras)}
        arrived: dict[str, float] = {}
        while last < begin + seconds and self.num_steps < self.answer - 1:
            for camera, at in due.items() if frames_per_second else ():
                if at <= last:
                    arrived[self._enqueue(camera)] = at
                    due[camera] += 1 / frames_per_second
            self.engine.run_background(0.5 * self.engine.step_s)
            made = self.engine.step(self.names)
            self.num_steps += 1
            times.gaps_s.append(now() - before)
            before, last = now(), time.perf_counter()
            seen = {token.frame_id for token in made}
            times.waits_s += [last - arrived.pop(frame) for frame in seen if frame in arrived]
        return times

    def _enqueue(self, camera: str) -> str:
        frame_id = f"{self.num_frames}"
        features = self.features[self.num_frames % len(self.features)]
        self.engine.enqueue_frames(camera, [(frame_id, self.num_frames / FPS, features)])
        self.num_frames += 1
        return frame_id
