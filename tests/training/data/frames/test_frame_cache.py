"""Frames that are decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data.frames.frame_cache import FrameCache, Frames


def test_what_is_kept_is_small_and_nearly_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    smooth = np.kron(rng.integers(0, 255, (5, 8, 8, 3)), np.ones((1, 28, 28, 1))).astype(np.uint8)
    frames = Frames(smooth, np.arange(5.0), 7.5)
    calls: list[int] = []

    def decode() -> Frames:
        calls.append(1)
        return frames

    cache = FrameCache(tmp_path / "cache")
    first, again = cache.get("a", decode), cache.get("a", decode)
    assert len(calls) == 1
    np.testing.assert_array_equal(first.pictures, again.pictures)
    np.testing.assert_array_equal(again.times, frames.times)
    assert again.length_s == 7.5
    assert np.abs(again.pictures.astype(int) - smooth).mean() < 3
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size < smooth.nbytes / 10
    cache.get("b", decode)
    assert len(calls) == 2


def test_no_frames_are_kept_too(tmp_path: Path) -> None:
    none = Frames(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0), 3.0)
    kept = FrameCache(tmp_path).get("a", lambda: none)
    assert (kept.pictures.shape, kept.times.shape, kept.length_s) == ((0, 32, 32, 3), (0,), 3.0)


def test_only_the_frames_between_two_times_are_decoded(tmp_path: Path) -> None:
    pictures = np.repeat(np.arange(5, dtype=np.uint8) * 50, 32 * 32 * 3).reshape(5, 32, 32, 3)
    frames, cache = Frames(pictures, np.arange(5.0), 5.0), FrameCache(tmp_path)

    def seen(first_s: float, last_s: float) -> list[int]:
        found = cache.get("a", lambda: frames, (first_s, last_s))
        assert found.times.tolist() == [round(float(picture.mean()) / 50) for picture in found.pictures]
        return found.times.astype(int).tolist()

    assert seen(-np.inf, np.inf) == [0, 1, 2, 3, 4]
    assert seen(1.0, 3.0) == [1, 2, 3]
    assert seen(1.2, 1.5) == [2]  # none, so the next one
    assert seen(4.5, 9.0) == []
