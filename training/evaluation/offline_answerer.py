"""Answer questions about pictures and finished videos with a StreamChat folder, for benchmarks.

A question's frames are the given pictures, or frames spread evenly over a video, as
`training/data/frames/video_frames.py` reads them for offline rows. The model sees all of them before its first word
(paper section 5: 40 frames of a video, one of a picture).
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
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.pixels import to_pixels
from training.data.frames.video_frames import FrameReader
from training.data.training_row import TrainingRow, Turn

Visual = Image.Image | str | Path  # a picture, or a video's path
SEED = 0  # sampled answers are the same in every run


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineQuestion:
    """A question and its sampling parameters. `stop`: texts that end the answer; they are left out of it."""

    text: str
    visuals: Sequence[Visual] = ()
    system: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()


class OfflineAnswerer:
    """Answers batches of questions with the model of a StreamChat folder."""

    def __init__(
        self, folder: Path, *, num_frames: int, batch_size: int, device: str, dtype: torch.dtype | None
    ) -> None:
        """Load the model and allocate memory for the largest batch.

        num_frames: frames of a video, and the most pictures of one question (ValueError for more).
        batch_size: the most questions that are answered together.
        """
        self.model = load_model(folder, dtype=dtype, device=device)
        # The frame ring has room for one question's frames, whatever the number for live cameras is.
        self.model.config = replace(self.model.config, fifo_frames=num_frames)
        self.engine = Engine(self.model, max_dialogs=batch_size, max_cameras=batch_size)
        self.tokenizer = load_tokenizer(folder)
        self.num_frames = num_frames
        size = self.model.config.vision.image_size
        self.reader = FrameReader(size=size, frames_per_second=1.0, max_frames=num_frames)
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        self.end_id = end

    def answer(self, questions: Sequence[OfflineQuestion]) -> list[str]:
        """Answer all questions together: each step decodes one token of each answer."""
        token_ids: dict[str, list[int]] = {}
        try:
            for number, question in enumerate(questions):
                options = DialogOptions(
                    max_tokens=question.max_tokens,
                    temperature=question.temperature,
                    top_p=question.top_p,
                    seed=SEED,
                    stop_ids=frozenset({self.end_id}),
                )
                self._open(str(number), question, options)
                token_ids[str(number)] = []
            self._decode(token_ids, questions)
        finally:
            self._close_all()
        texts = (self._text(ids) for ids in token_ids.values())
        return [_truncate(text, question.stop) for text, question in zip(texts, questions, strict=True)]

    def _decode(self, token_ids: dict[str, list[int]], questions: Sequence[OfflineQuestion]) -> None:
        unfinished = list(token_ids)
        while unfinished:
            for generated in self.engine.step(unfinished):
                name = generated.dialog_id
                if generated.token_id != self.end_id:
                    token_ids[name].append(generated.token_id)
                stop = questions[int(name)].stop
                if generated.finish_reason is not None or (
                    stop and _has_stop(self._text(token_ids[name]), stop)
                ):
                    unfinished.remove(name)

    def loss(self, question: OfflineQuestion, continuation: str) -> tuple[float, bool]:
        """Mean cross-entropy of a continuation's tokens, in nats, and whether greedy decoding would give them.

        Raises ValueError for a continuation without tokens.
        """
        ids = self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        if not ids:
            raise ValueError(f"continuation: got {continuation!r}, wanted at least one token")
        total, is_greedy = 0.0, True
        try:
            self._open("0", question, DialogOptions(max_tokens=len(ids) + 1))
            for token_id in ids:
                logits = self.engine.logits(["0"])[0].float()
                total -= float(logits.log_softmax(-1)[token_id])
                is_greedy = is_greedy and int(logits.argmax()) == token_id
                self.engine.append_token("0", token_id)
        finally:
            self._close_all()
        return total / len(ids), is_greedy

    def _close_all(self) -> None:
        for name in list(self.engine.dialogs):
            self.engine.close_dialog(name)
        for name in list(self.engine.cameras):
            self.engine.drop_camera(name)

    def _open(self, name: str, question: OfflineQuestion, options: DialogOptions) -> None:
        self.engine.add_camera(name)
        pictures = self.pictures(question.visuals)
        if len(pictures):
            features = self._encode(pictures)
            self.engine.add_frames(name, [(str(i), float(i), f) for i, f in enumerate(features)])
        messages = [{"role": "system", "content": question.system}] if question.system else []
        messages.append({"role": "user", "content": question.text})
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(str(prompt), add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        self.engine.open_dialog(name, name, ids, options)

    @torch.inference_mode()
    def _encode(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        weight = self.model.language.embed_tokens.weight
        return self.model.vision(torch.from_numpy(pictures).to(weight.device))

    def pictures(self, visuals: Sequence[Visual]) -> npt.NDArray[np.uint8]:
        """A question's frames as the encoder takes them: uint8 [N, S, S, 3]. BadRow for what cannot be read."""
        size = self.model.config.vision.image_size
        frames = [np.zeros((0, size, size, 3), np.uint8)]
        for visual in visuals:
            if isinstance(visual, Image.Image):
                frames.append(to_pixels(av.VideoFrame.from_image(visual.convert("RGB")), size)[None])
            else:
                turn = Turn(instruction="?", answer="?")
                row = TrainingRow(video=str(visual), kind="offline", source="benchmark", turns=(turn,))
                frames.append(self.reader.read(row).pictures)
        pictures = np.concatenate(frames)
        if len(pictures) > self.num_frames:
            raise ValueError(
                f"visuals: got {len(pictures)} pictures, wanted at most num_frames={self.num_frames}"
            )
        return pictures

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _has_stop(text: str, stop: Sequence[str]) -> bool:
    return any(end and end in text for end in stop)


def _truncate(text: str, stop: Sequence[str]) -> str:
    """Cut the text before the first stop text."""
    ends = [at for end in stop if end and (at := text.find(end)) >= 0]
    return text[: min(ends, default=len(text))].strip()
