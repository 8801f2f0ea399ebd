"""What an LLMDecoder reports of its steps and of what the engine holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.folder import load_model
from model.engine.dialog import DialogOptions
from model.engine.engine import Engine
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.llm_decoder import metrics
from services.llm_decoder.camera_frames import to_tensor
from services.messages.camera_name import PRIVATE_PREFIX
from tests.services.adapters.test_prometheus_recorder import values
from tests.services.llm_decoder.test_llm_decoder import frame

NAN = float("nan")


@pytest.fixture
def engine(random_folder: Path) -> Engine:
    engine = Engine(load_model(random_folder))
    engine.add_camera("a")
    engine.add_frame("a", "1-0", 1.0, to_tensor(frame("a", 1)))
    return engine


async def test_steps_and_frames_are_counted(engine: Engine) -> None:
    recorder = PrometheusRecorder("llm_decoder")
    reported = metrics.LLMDecoderMetrics(engine, recorder)
    reported.frames_enqueued(3)
    reported.frames_enqueued(2)
    reported.step_made(0.25, 4)
    reported.live_token_made("a", 0.125)
    reported.live_token_made("a", -0.5)  # a clock that is ahead
    found = await values(recorder)
    assert found[metrics.REFRESHES.name,] == 5
    assert found[metrics.BUSY.name,] == 0.25
    assert found[f"{metrics.STEP.name}_sum",] == 0.25
    assert found[f"{metrics.STEP_DIALOGS.name}_sum",] == 4
    assert found[f"{metrics.FRAME_AGE.name}_sum", "a"] == 0.125
    assert found[f"{metrics.FRAME_AGE.name}_count", "a"] == 2


async def test_what_the_engine_holds_is_reported_once_a_second(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now_s)
    recorder = PrometheusRecorder("llm_decoder")
    reported = metrics.LLMDecoderMetrics(engine, recorder)
    engine.open_dialog("d", "a", [5, 9, 3], DialogOptions(max_tokens=3))
    engine.add_frame("a", "2-0", 2.0, to_tensor(frame("a", 2)) * NAN)
    reported.update(["a", "a", "b", f"{PRIVATE_PREFIX}1"])
    found = await values(recorder)
    dialogs = {labels[1]: value for labels, value in found.items() if labels[0] == metrics.DIALOGS.name}
    assert dialogs == {"a": 2, "b": 1, metrics.CLIP: 1}
    assert found[metrics.SKIPPED_FRAMES.name,] == 1
    assert found[metrics.FAILED_ROWS.name,] == 0
    frames, text = engine.frame_pages, engine.text_pages
    assert found[metrics.CACHE_BYTES.name, "frames"] == frames.allocated_bytes > 0
    assert found[metrics.CACHE_BYTES.name, "text"] == text.allocated_bytes > 0
    assert found[metrics.CACHE_EACH_BYTES.name, "camera"] == frames.page_bytes
    assert found[metrics.CACHE_EACH_BYTES.name, "dialog"] == text.page_bytes
    assert found[metrics.CACHE_LIMIT_BYTES.name,] == frames.size_bytes + text.size_bytes
    assert 0 < found[metrics.DEVICE_BYTES.name, "cpu"] < found[metrics.DEVICE_LIMIT_BYTES.name, "cpu"]

    engine.add_frame("a", "3-0", 3.0, to_tensor(frame("a", 3)) * NAN)
    now_s += 0.9
    reported.update([])
    assert (await values(recorder))[metrics.DIALOGS.name, "a"] == 2
    now_s += 0.1
    reported.update(["b"])
    found = await values(recorder)
    assert [found[metrics.DIALOGS.name, name] for name in ("a", "b", metrics.CLIP)] == [0, 1, 0]
    assert found[metrics.SKIPPED_FRAMES.name,] == 2
