"""The cameras of an engine: each frame once, and nobody's frames are kept for long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.folder import load_model
from model.engine.dialog import DialogOptions
from model.engine.engine import Engine
from services.llm_decoder.camera_frames import CameraFrames, to_tensor
from services.messages.camera_name import PRIVATE_PREFIX
from tests.services.llm_decoder.test_llm_decoder import frame

CLIP = f"{PRIVATE_PREFIX}1"


@pytest.fixture
def engine(random_folder: Path) -> Engine:
    return Engine(load_model(random_folder), max_cameras=2)


def cameras(engine: Engine, forgotten: list[str], forget_after_s: float = 0.0) -> CameraFrames:
    return CameraFrames(engine, forget_after_s=forget_after_s, on_forget=forgotten.append)


def test_each_frame_is_taken_once_and_in_order(engine: Engine) -> None:
    found = cameras(engine, [])
    assert (
        found.enqueue([frame("a", 2, 2.0), frame("b", 1, 2.0), frame("a", 1, 1.0), frame("a", 3, 3.0)]) == 3
    )
    assert found.enqueue([frame("a", 3, 3.0), frame("b", 1, 2.0)]) == 0
    assert found.newest("a") == (3000, 3)
    assert found.has("b")
    assert not found.has("c")
    assert found.newest("c") is None


def test_a_camera_in_use_stays_and_an_idle_one_is_forgotten(engine: Engine) -> None:
    forgotten: list[str] = []
    found = cameras(engine, forgotten)
    found.enqueue([frame("a", 1), frame("b", 1)])
    found.forget_unused({"a"})
    assert forgotten == ["b"]
    assert set(engine.cameras) == {"a"}
    assert not found.has("b")
    assert found.enqueue([frame("b", 1)]) == 1  # it comes back with the frame it had


def test_an_idle_camera_stays_for_a_while_and_a_clip_does_not(engine: Engine) -> None:
    forgotten: list[str] = []
    found = cameras(engine, forgotten, forget_after_s=60.0)
    found.enqueue([frame("a", 1), frame(CLIP, 1)])
    found.forget_unused(())
    assert forgotten == [CLIP]
    assert set(engine.cameras) == {"a"}


def test_a_full_engine_forgets_an_idle_camera_for_a_new_one(engine: Engine) -> None:
    forgotten: list[str] = []
    found = cameras(engine, forgotten, forget_after_s=60.0)
    found.enqueue([frame("a", 1), frame("b", 1), frame("c", 1)])
    assert len(forgotten) == 1
    assert set(engine.cameras) == {"a", "b", "c"} - set(forgotten)
    assert not found.has(forgotten[0])


def test_no_camera_is_dropped_from_under_a_dialog(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    forgotten: list[str] = []
    found = cameras(engine, forgotten)
    for name in ("a", "b"):
        found.enqueue([frame(name, 1)])
        engine.run_background(60.0)
        engine.open_dialog(name, name, [5, 9, 3], DialogOptions(max_tokens=3))
    found.forget_unused(())  # nobody told that they are in use
    assert "could not be dropped" in caplog.text
    assert found.enqueue([frame("c", 1)]) == 0  # no place: it is not followed
    assert forgotten == ["c"]
    assert not found.add_without_frames("d")
    assert set(engine.cameras) == {"a", "b"}
    assert found.has("a")
    engine.close_dialog("a")
    assert found.add_without_frames("d")
    assert forgotten == ["c", "a"]
    assert found.add_without_frames("d")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_frame_becomes_the_tensor_it_was(dtype: torch.dtype) -> None:
    tokens = torch.arange(-6, 6).reshape(4, 3).to(dtype) / 8
    data = bytes(tokens.view(torch.uint8).flatten().tolist())
    given = replace(frame("a", 1), shape=(4, 3), dtype=str(dtype).removeprefix("torch."), visual_tokens=data)
    assert to_tensor(given).equal(tokens)
    assert to_tensor(given).dtype == dtype
