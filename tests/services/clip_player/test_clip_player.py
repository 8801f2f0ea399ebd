"""Clips are played into private FIFOs."""

from __future__ import annotations

import time

import pytest

from model.config import preset
from services.clip_player.clip_player import ClipPlayer
from services.messages.video import ClipRefused, Frame, VisualTokens
from services.ports.frame_store import KEPT_S, StoreLost
from services.ports.vision_encoder import Encode
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.h264 import clip


class LostStore(MemoryFrameStore):
    def append(self, frame: Frame, *, capacity: int, keep_s: float = KEPT_S) -> bool:
        raise StoreLost("no store")


async def encode(pictures: list[bytes]) -> list[VisualTokens]:
    return [VisualTokens(shape=(1, 3), dtype="uint8", data=p[:3]) for p in pictures]


def player(store: MemoryFrameStore, encode: Encode = encode) -> ClipPlayer:
    return ClipPlayer(Settings(encoder_batch=4), preset("tiny"), store, encode)


async def test_a_clip_is_played_into_a_private_player() -> None:
    store = MemoryFrameStore()
    played = await player(store).play(clip(45), "video")
    frames = store.newest(played.camera, 100)
    assert played.camera.startswith("clip-")
    assert played.num_frames == len(frames) == 15
    assert played.end_s == frames[-1].captured_s
    assert frames[-1].captured_s - frames[0].captured_s == pytest.approx(2.8, abs=0.001)
    assert abs(played.end_s - time.time()) < 30
    assert store.cameras() == []


async def test_a_lost_service_is_reported_as_such() -> None:
    async def broken(pictures: list[bytes]) -> list[VisualTokens]:
        raise RuntimeError("replica died")

    for refusing, code in (
        (player(LostStore()), "store_lost"),
        (player(MemoryFrameStore(), broken), "encoder_lost"),
    ):
        with pytest.raises(ClipRefused) as refused:
            await refusing.play(clip(3), "video")
        assert (refused.value.status, refused.value.code) == (503, code)
