"""Draw the live world's pictures, and encode them as H.264.

Things are drawn on coloured tiles in nine places, on a blotchy background with changing light and sensor noise. A mark
shows an event for as long as it lasts: stars around a thing that appears, a trail behind one that moves, a white frame
around one that turns another colour, grey puffs over one that leaves.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.live_world.world import COLOURS, HELD_OUT, TEST_SEEDS, THINGS, Event, State, Thing, World

SIZE = 240  # pixels, square
CELL = SIZE // 3
FPS = 10
PICTURES = Path(__file__).parent / "pictures"

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Renderer:
    """Draws the frames of one world. Its seed and index decide the background, sizes and noise."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = np.random.default_rng([world.seed, world.index, 1])
        self.background = _background(self.rng)
        self.light = self.rng.uniform(0.0, 2 * np.pi), self.rng.uniform(4.0, 12.0)  # phase, period in seconds
        self.noise_strength = float(self.rng.uniform(1.0, 6.0))
        self.sizes = {n: (int(self.rng.integers(50, 63)), self.rng.integers(-4, 5, size=2)) for n in THINGS}

    def frame(self, state: State) -> Pixels:
        """The picture [SIZE, SIZE, 3] of a state, RGB."""
        phase, period_s = self.light
        light = 1.0 + 0.08 * np.sin(phase + state.time_s / period_s * 2 * np.pi)
        canvas = self.background * np.float32(light)
        event = state.event
        if event is not None and event.happening == "moves":
            _paste(canvas, _trail(event.from_place, event.thing.place), (0, 0))
        for thing in state.things:
            self._draw(
                canvas, thing, event if event is not None and event.thing.name == thing.name else None, state
            )
        if event is not None and event.happening == "leaves":
            self._draw(canvas, event.thing, event, state)
        noise = _noise_bank()[int(self.rng.integers(16))]
        shift = int(self.rng.integers(SIZE))
        canvas += np.roll(noise, shift, axis=0) * np.float32(self.noise_strength)
        return np.clip(canvas, 0, 255).astype(np.uint8)

    def _draw(self, canvas: Floats, thing: Thing, event: Event | None, state: State) -> None:
        size, offset = self.sizes[thing.name]
        tile = _tile(thing.name, thing.colour, size)
        row, column = divmod(thing.place, 3)
        corner = int(row * CELL + offset[0] + 4), int(column * CELL + offset[1] + 4)
        if event is not None and event.happening == "leaves":
            tile = tile * np.array([1, 1, 1, 0.45], dtype=np.float32)
        _paste(canvas, tile, corner)
        if event is not None and event.happening != "moves":
            phase = int(state.time_s * 5) % 2
            _paste(canvas, _mark(event.happening, phase), corner)


def write_video(world: World, path: Path, crf: int = 26) -> None:
    """Encode the world as H.264 in MP4, SIZE x SIZE at FPS, a keyframe a second, no B-frames.

    The file of a test seed says that it is held out, and training refuses it, whatever its name and folder.
    """
    renderer = Renderer(world)
    with av.open(str(path), "w", format="mp4") as container:
        if world.seed in TEST_SEEDS:
            container.metadata["comment"] = HELD_OUT
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "crf": str(crf),
            "g": str(FPS),
            "threads": "1",
        }
        for number in range(int(world.duration_s * FPS)):
            frame = av.VideoFrame.from_ndarray(renderer.frame(world.state(number / FPS)), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _background(rng: np.random.Generator) -> Floats:
    """Coloured blotches of a random size, blurred: [SIZE, SIZE, 3]."""
    grid = int(rng.integers(3, 12))
    base = rng.uniform(60, 190, size=3)
    blotches = np.clip(base + rng.normal(0, 28, size=(grid, grid, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(blotches).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> Floats:
    return np.random.default_rng(0).normal(0, 1, size=(16, SIZE, SIZE, 1)).astype(np.float32)


@lru_cache(maxsize=4096)
def _tile(name: str, colour: str, size: int) -> Floats:
    """The thing on its tile: [72, 72, 4], alpha from 0 to 1."""
    image = Image.new("RGBA", (144, 144))
    ImageDraw.Draw(image).rounded_rectangle((1, 1, 142, 142), radius=24, fill=(*COLOURS[colour], 255))
    image = image.resize((72, 72), Image.Resampling.BOX)
    picture = (
        Image.open(PICTURES / f"{name}.png").convert("RGBA").resize((size, size), Image.Resampling.BICUBIC)
    )
    image.alpha_composite(picture, ((72 - size) // 2, (72 - size) // 2))
    return _as_layer(image)


@lru_cache(maxsize=16)
def _mark(happening: str, phase: int) -> Floats:
    """The mark of an event: [72, 72, 4]. `phase` 0 and 1 are two pictures that alternate."""
    image = Image.new("RGBA", (288, 288))
    draw = ImageDraw.Draw(image)
    if happening == "turns":
        for width in (0, 9):
            box = (4 + width, 4 + width, 283 - width, 283 - width)
            draw.rounded_rectangle(
                box, radius=48, outline=(255, 255, 255, 255) if width == 0 else (0, 0, 0, 255), width=9
            )
        draw.rounded_rectangle(
            (22, 22, 265, 265), radius=36, outline=(255, 255, 255, 255), width=10 + 8 * phase
        )
    corners = [(44, 44), (244, 44), (44, 244), (244, 244)]
    for number, (x, y) in enumerate(corners):
        radius = 40 if (number + phase) % 2 else 30
        if happening == "appears":
            for long, short in ((radius, 9), (9, radius)):
                points = [(x - long, y), (x, y - short), (x + long, y), (x, y + short)]
                draw.polygon(points, fill=(255, 240, 90, 255), outline=(60, 40, 0, 255))
        if happening == "leaves":
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=(150, 150, 150, 235),
                outline=(70, 70, 70, 255),
                width=4,
            )
    return _as_layer(image.resize((72, 72), Image.Resampling.BOX))


@lru_cache(maxsize=128)
def _trail(from_place: int, to_place: int) -> Floats:
    """Bars from a thing's old place to its new one, and beside it: [SIZE, SIZE, 4]."""
    image = Image.new("RGBA", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    (y0, x0), (y1, x1) = (((p // 3 + 0.5) * CELL, (p % 3 + 0.5) * CELL) for p in (from_place, to_place))
    draw.line((x0, y0, x1, y1), fill=(255, 255, 255, 210), width=14)
    draw.line((x0, y0, x1, y1), fill=(40, 40, 40, 255), width=6)
    draw.rectangle((x1 - 39, y1 - 39, x1 + 38, y1 + 38), outline=(40, 40, 40, 255), width=3)
    for side in (-1, 1):
        draw.line((x1 + side * 37, y1 - 36, x1 + side * 37, y1 + 36), fill=(255, 255, 255, 255), width=4)
    return _as_layer(image)


def _as_layer(image: Image.Image) -> Floats:
    layer = np.asarray(image, dtype=np.float32).copy()
    layer[..., 3] /= 255.0
    return layer


def _paste(canvas: Floats, layer: Floats, corner: tuple[int, int]) -> None:
    """Blend a layer [h, w, 4] into the canvas at (row, column); what lies outside is cut off."""
    top, left = max(corner[0], 0), max(corner[1], 0)
    bottom, right = min(corner[0] + layer.shape[0], SIZE), min(corner[1] + layer.shape[1], SIZE)
    visible = layer[top - corner[0] : bottom - corner[0], left - corner[1] : right - corner[1]]
    alpha = visible[..., 3:]
    region = canvas[top:bottom, left:right]
    region += (visible[..., :3] - region) * alpha
