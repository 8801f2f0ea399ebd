"""Pictures show the truth and nothing else; written video is real H.264."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from tests.training.sample_worlds import CAT, DOG, STORY, many_worlds
from training.live_world.picture import CELL, FPS, PICTURES, SIZE, Pixels, Renderer, write_video
from training.live_world.world import COLOURS, THINGS, Thing, World

KEPT = Path(__file__).with_name("pictures.npz")
SHORT = World(seed=5, index=1, duration_s=2.5, start=(DOG, CAT), events=STORY.events[:1])


def picture(world: World, time_s: float) -> Pixels:
    """A world's first picture if the clip began at that time: same look, same noise, another truth."""
    return Renderer(world).frame(world.state(time_s))


def changed_places(first: Pixels, second: Pixels) -> set[int]:
    """Places in which two pictures differ."""
    cells = (first != second).any(-1).reshape(3, CELL, 3, CELL).any((1, 3))
    return set(np.flatnonzero(cells).tolist())


def blocks(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Means over blocks of 8 x 8 pixels: [30, 30, 3]."""
    return pixels.reshape(SIZE // 8, 8, SIZE // 8, 8, 3).mean((1, 3), dtype=np.float32)


def drawn() -> npt.NDArray[np.float32]:
    """Pictures of everything that is drawn, as blocks: things, colours, both phases of each happening, backgrounds."""
    found: list[Pixels] = []
    for first in range(0, len(THINGS), 9):
        names, colours = list(THINGS)[first : first + 9], list(COLOURS) * 2
        things = [
            Thing(name=name, colour=colours[first // 9 + place], place=place)
            for place, name in enumerate(names)
        ]
        found.append(picture(replace(STORY, start=tuple(things), events=()), 0.0))
    renderer = Renderer(STORY)
    found += [
        renderer.frame(STORY.state(e.start_s + after_s)) for e in STORY.events for after_s in (0.2, 0.4)
    ]
    found += [picture(world, world.duration_s / 2) for world in many_worlds(6)]
    return np.stack([blocks(pixels) for pixels in found])


def test_a_world_looks_as_it_always_did() -> None:
    """Scores of earlier models stay comparable. `python -m tests.training.live_world.test_picture` draws anew."""
    with np.load(KEPT) as kept:
        np.testing.assert_allclose(drawn(), kept["blocks"], atol=1.5)


def test_a_picture_is_square_rgb() -> None:
    image = picture(STORY, 0.0)
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "places"),
    [
        (replace(DOG, name="ghost"), {0}),
        (replace(DOG, colour="green"), {0}),
        (replace(DOG, place=5), {0, 5}),
        (None, {0}),
    ],
    ids=["thing", "colour", "place", "gone"],
)
def test_pictures_differ_where_the_truth_differs_and_nowhere_else(
    changed: Thing | None, places: set[int]
) -> None:
    quiet = replace(STORY, events=())
    other = replace(quiet, start=(CAT,) if changed is None else (changed, CAT))
    assert changed_places(picture(quiet, 0.0), picture(other, 0.0)) == places


@pytest.mark.parametrize("event", STORY.events, ids=lambda e: e.happening)
def test_each_happening_can_be_seen_where_it_happens(event: object) -> None:
    state = next(STORY.state(e.start_s + 0.5) for e in STORY.events if e is event)
    assert state.event is not None
    shown = Renderer(STORY).frame(state)
    hidden = Renderer(STORY).frame(replace(state, event=None))
    places = changed_places(shown, hidden)
    assert state.event.thing.place in places
    if state.event.happening != "moves":
        assert places == {state.event.thing.place}
    cell = np.abs(shown.astype(int) - hidden.astype(int)).sum(-1)
    assert (cell > 60).sum() > 200, "a mark that is hardly a few pixels cannot be learnt"


def test_things_and_colours_all_look_different() -> None:
    quiet = replace(STORY, events=())
    things = [Thing(name=name, colour="red", place=4) for name in THINGS]
    things += [Thing(name="dog", colour=colour, place=4) for colour in COLOURS if colour != "red"]
    looks = {picture(replace(quiet, start=(thing,)), 0.0).tobytes() for thing in things}
    assert len(looks) == len(THINGS) + len(COLOURS) - 1


def test_backgrounds_are_varied_and_noisy() -> None:
    empty = [replace(w, start=(), events=()) for w in many_worlds(8)]
    means = np.array([picture(w, 0.0).reshape(-1, 3).mean(0) for w in empty])
    assert means.std(0).min() > 8
    renderer = Renderer(empty[0])
    assert (renderer.frame(empty[0].state(0.0)) != renderer.frame(empty[0].state(0.0))).mean() > 0.2


def test_every_thing_has_its_picture_and_the_art_is_credited() -> None:
    assert {p.stem for p in PICTURES.glob("*.png")} == set(THINGS)
    credits = (PICTURES / "CREDITS.md").read_text()
    assert "Twemoji" in credits
    assert "CC-BY" in credits.replace(" ", "-").upper()


def test_the_video_is_h264_a_keyframe_a_second_without_reordering(tmp_path: Path) -> None:
    write_video(SHORT, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height, stream.average_rate) == (SIZE, SIZE, FPS)
        packets = [p for p in container.demux(stream) if p.size]
        frames = [f for p in packets for f in p.decode()]
        frames += context.decode(None)
    assert [p.is_keyframe for p in packets] == [n % FPS == 0 for n in range(25)]
    assert all(p.pts == p.dts for p in packets)
    assert [f.time for f in frames] == pytest.approx([n / FPS for n in range(25)])


def test_what_is_decoded_is_what_was_painted(tmp_path: Path) -> None:
    write_video(SHORT, tmp_path / "clip.mp4")
    renderer = Renderer(SHORT)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            painted = renderer.frame(SHORT.state(number / FPS)).astype(float)
            assert np.abs(frame.to_ndarray(format="rgb24") - painted).mean() < 8


def test_the_same_world_gives_the_same_file_byte_for_byte(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_video(SHORT, tmp_path / name)
    write_video(replace(SHORT, seed=6), tmp_path / "other.mp4")
    one, two, other = ((tmp_path / n).read_bytes() for n in ("one.mp4", "two.mp4", "other.mp4"))
    assert one == two != other


if __name__ == "__main__":
    np.savez_compressed(KEPT, blocks=np.round(drawn()).astype(np.uint8))
