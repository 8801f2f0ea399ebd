"""Questions about pictures and videos that are over, answered by a StreamChat folder: for benchmarks.

Frames are what `training/data/video_frames.py` reads for offline rows, evenly over a video, or the given pictures;
all are seen before the first word (section 5 of the paper: 40 frames of a video, one of a picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.engine.dialog import Options
from model.engine.engine import Engine
from model.network.pixels import to_pixels
from training.data.row import Row, Turn
from training.data.video_frames import FrameReader

Visual = Image.Image | str | Path  # a picture, or a video's path
SEED = 0  # sampled answers are the same in every run


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question and how to answer it. `until`: texts at which the answer ends; they are left out."""

    text: str
    visuals: Sequence[Visual] = ()
    system: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    until: Sequence[str] = ()


class OfflineAnswerer:
    """A StreamChat folder that answers, several questions at a time."""

    def __init__(
        self, folder: Path, *, num_frames: int, together: int, device: str, dtype: torch.dtype | None
    ) -> None:
        """Memory is taken here, for good.

        num_frames: of a video, and the most pictures that one question may show; ValueError for more.
        together: questions answered at once at most.
        """
        self.model = load_model(folder, dtype=dtype, device=device)
        # A ring holds what a question shows, however many frames a camera keeps.
        self.model.config = replace(self.model.config, fifo_frames=num_frames)
        self.engine = Engine(self.model, max_dialogs=together, max_cameras=together)
        self.tokenizer = load_tokenizer(folder)
        self.num_frames = num_frames
        size = self.model.config.vision.image_size
        self.reader = FrameReader(size=size, frames_per_second=1.0, max_frames=num_frames)
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        self.end_id = end

    def answer(self, questions: Sequence[Asked]) -> list[str]:
        """Answer all of them together: a step is one token of each."""
        said: dict[str, list[int]] = {}
        try:
            for number, asked in enumerate(questions):
                options = Options(
                    max_tokens=asked.max_tokens,
                    temperature=asked.temperature,
                    top_p=asked.top_p,
                    seed=SEED,
                    stop_ids=frozenset({self.end_id}),
                )
                self._open(str(number), asked, options)
                said[str(number)] = []
            self._speak(said, questions)
        finally:
            self._close()
        return [_up_to(self._text(ids), q.until) for ids, q in zip(said.values(), questions, strict=True)]

    def _speak(self, said: dict[str, list[int]], questions: Sequence[Asked]) -> None:
        speaking = list(said)
        while speaking:
            for made in self.engine.step(speaking):
                if made.token_id != self.end_id:
                    said[made.dialog_id].append(made.token_id)
                until = questions[int(made.dialog_id)].until
                if made.finished is not None or (until and _ends(self._text(said[made.dialog_id]), until)):
                    speaking.remove(made.dialog_id)

    def loss(self, asked: Asked, continuation: str) -> tuple[float, bool]:
        """Mean cross-entropy of a continuation's tokens, in nats, and whether each is the likeliest.

        Raises ValueError for a continuation without tokens.
        """
        ids = self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        if not ids:
            raise ValueError(f"continuation: got {continuation!r}, wanted at least one token")
        total, likeliest = 0.0, True
        try:
            self._open("0", asked, Options(max_tokens=len(ids) + 1))
            for token_id in ids:
                logits = self.engine.logits(["0"])[0].float()
                total -= float(logits.log_softmax(-1)[token_id])
                likeliest = likeliest and int(logits.argmax()) == token_id
                self.engine.say("0", token_id)
        finally:
            self._close()
        return total / len(ids), likeliest

    def _close(self) -> None:
        for name in list(self.engine.dialogs):
            self.engine.close(name)
        for name in list(self.engine.cameras):
            self.engine.drop_camera(name)

    def _open(self, name: str, asked: Asked, options: Options) -> None:
        self.engine.add_camera(name)
        pictures = self.pictures(asked.visuals)
        if len(pictures):
            features = self._encode(pictures)
            self.engine.add_frames(name, [(str(i), float(i), f) for i, f in enumerate(features)])
        messages = [{"role": "system", "content": asked.system}] if asked.system else []
        messages.append({"role": "user", "content": asked.text})
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(str(prompt), add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        self.engine.open(name, name, ids, options)

    @torch.inference_mode()
    def _encode(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        weight = self.model.language.embed_tokens.weight
        return self.model.vision(torch.from_numpy(pictures).to(weight.device))

    def pictures(self, visuals: Sequence[Visual]) -> npt.NDArray[np.uint8]:
        """What a question shows, as the encoder takes it: uint8 [N, S, S, 3]. BadRow for what cannot be read."""
        size = self.model.config.vision.image_size
        shown = [np.zeros((0, size, size, 3), np.uint8)]
        for visual in visuals:
            if isinstance(visual, Image.Image):
                shown.append(to_pixels(av.VideoFrame.from_image(visual.convert("RGB")), size)[None])
            else:
                turn = Turn(instruction="?", answer="?")
                row = Row(video=str(visual), kind="offline", source="benchmark", turns=(turn,))
                shown.append(self.reader.read(row).pictures)
        pictures = np.concatenate(shown)
        if len(pictures) > self.num_frames:
            raise ValueError(
                f"visuals: got {len(pictures)} pictures, wanted at most num_frames={self.num_frames}"
            )
        return pictures

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _ends(text: str, until: Sequence[str]) -> bool:
    return any(stop and stop in text for stop in until)


def _up_to(text: str, until: Sequence[str]) -> str:
    """The text up to the first place where it is to end."""
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()
