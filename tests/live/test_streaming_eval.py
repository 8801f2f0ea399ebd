"""A streaming evaluation with running servers: live against frozen, at the video's own pace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.live.clients.live_stack import LiveStack
from training.evaluation.streaming_eval import main
from training.live_world.world import TEST_SEEDS
from training.live_world.write_clips import write_clips

pytestmark = pytest.mark.timeout(400)  # the first test here starts everything
NUM_TOKENS = 15


def evaluate(
    up: LiveStack, clips: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> dict[str, Any]:
    command = ["streaming_eval.py", "--clips", str(clips), "--judge", "truth", "--out", str(out), *more]
    for number, context in (("first", "live"), ("second", "frozen")):
        where = f"name={context},url={up.url},kafka={up.kafka},visual_context={context}"
        command += [f"--{number}", f"{where},max_tokens={NUM_TOKENS},tokens_per_second=5"]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", command)
        main()
    return json.loads((out / "summary.json").read_text())


def test_live_against_frozen(up: LiveStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    write_clips(TEST_SEEDS.start + 5, 1, clips)
    summary = evaluate(up, clips, out, monkeypatch)
    assert (summary["questions"], summary["not_judged"], summary["rejected"]) == (6, 0, {})
    asked = json.loads((clips / "questions.json").read_text())["0000.mp4"]
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        ask_s = asked[int(row["sample"].partition("#")[2])]["ask_s"]
        times = np.array([seen_s for _, seen_s in row["tokens"]])
        assert ask_s - 0.3 <= row["asked_seen_s"] < ask_s + 3.0  # a busy machine asks late, never early
        assert row["asked_seen_s"] <= times[0] + 1e-6
        assert np.all(np.diff(times) >= 0)
        assert times[-1] - times[0] > 0.5 * (NUM_TOKENS - 1) / 5  # the video went on while it was spoken
        grown_s = (row["frame_ages_ms"][-1] - row["frame_ages_ms"][0]) / 1000
        if row["candidate"] == "frozen":  # who looks once speaks from an ever older frame
            assert grown_s == pytest.approx(times[-1] - times[0], abs=0.1)
        else:
            assert grown_s < 0.8 * (times[-1] - times[0])
    again = evaluate(up, clips, out, monkeypatch)
    assert again == summary
    assert len((out / "answers.jsonl").read_text().splitlines()) == 12


def test_a_video_that_is_no_video_is_told_and_the_others_are_asked_about(
    up: LiveStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    write_clips(TEST_SEEDS.start + 6, 2, clips)
    (clips / "0000.mp4").write_bytes(b"no video")
    summary = evaluate(up, clips, out, monkeypatch, "--max-bad", "0.7")
    assert summary["rejected"] == {"no camera": 12}
    assert (summary["questions"], summary["not_judged"]) == (6, 6)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert all("0000.mp4 cannot be read as video" in row["detail"] for row in rejected)
