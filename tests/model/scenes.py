"""Small random models of several shapes, and scenes to show them. What several test files need, and no test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import StreamChatConfig, VisionConfig
from model.engine.engine import Engine
from model.network.clock import indices, visibility
from model.network.streamchat import StreamChat

COMMON: dict[str, Any] = {
    "name": "small",
    "vision": VisionConfig(
        image_size=24,
        patch_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    ),
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "max_position_embeddings": 300,
    "fifo_frames": 5,
}
# heads, layers, and what makes each one different
SHAPES: dict[str, dict[str, Any]] = {
    "gqa_tied": {"heads": (4, 2, 16), "layers": (4, 2), "tie_word_embeddings": True},
    "mha_untied": {"heads": (2, 2, 32), "layers": (3, 1)},
    "llama": {"heads": (4, 1, 64), "layers": (5, 4), "attention_bias": False, "rope_theta": 1e4},
    "no_visual_ffn": {"heads": (4, 2, 16), "layers": (4, 2), "visual_ffn": False},
    "tanh_gate": {"heads": (4, 2, 16), "layers": (4, 2), "gate": "tanh"},
    "own_attention": {"heads": (4, 2, 16), "layers": (4, 2), "share_attention_parameters": False},
}


def make_config(shape: str, **changes: Any) -> StreamChatConfig:
    values = dict(SHAPES[shape])
    heads, groups, head_dim = values.pop("heads")
    layers, every = values.pop("layers")
    return StreamChatConfig(
        **COMMON
        | values
        | {
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": head_dim,
            "num_hidden_layers": layers,
            "cross_attention_every": every,
        }
        | changes
    )


def make_model(shape: str, **changes: Any) -> StreamChat:
    """Random in every parameter, gates and biases included, so that no path is silent."""
    torch.manual_seed(len(shape))
    model = StreamChat(make_config(shape, **changes)).eval()
    for name, parameter in model.named_parameters():
        if "gate_" in name and "proj" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
        elif name.startswith("language") and parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


@dataclass
class Scene:
    """Events of one dialog: text and frames with their times, and turns (positions)."""

    token_ids: list[int]
    text_times: list[float]
    features: Tensor  # [N, P, Dv]
    frame_times: list[float]
    turns: list[int] = field(default_factory=lambda: [0])
    asked: int = 6  # tokens of each question

    def inputs(self, model: StreamChat) -> dict[str, Tensor]:
        """Arguments of the training forward, for one row."""
        text, frames = indices(self.text_times, self.frame_times, self.turns)
        seen = visibility([*self.text_times[1:], 1e9], self.frame_times, model.config.fifo_frames)
        return {
            "token_ids": torch.tensor([self.token_ids]),
            "text_index": torch.from_numpy(text)[None],
            "frame_features": self.features,
            "frames_of_row": torch.arange(len(self.features))[None],
            "frame_index": torch.from_numpy(frames)[None],
            "visible": torch.from_numpy(seen)[None],
        }


def make_scene(model: StreamChat, seed: int = 0, *, num_turns: int = 1, num_frames: int = 24) -> Scene:
    """Frames at an uneven pace; each question of 6 tokens is asked at once, its answer is spoken over time.

    All times are binary fractions, so that shifting them rounds nothing.
    """
    random = np.random.default_rng(seed)
    frame_times = np.cumsum(random.choice([0.125, 0.25, 0.5], num_frames)).tolist()
    text_times: list[float] = []
    turns: list[int] = []
    asked_s = 1.0
    for _ in range(num_turns):
        turns.append(len(text_times))
        steps = np.cumsum(random.choice([0.0, 0.125, 0.375], 10))
        text_times += [asked_s] * 6 + (asked_s + steps).tolist()
        asked_s = text_times[-1] + 1.0
    vision = model.config.vision
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_frames, vision.num_visual_tokens, vision.hidden_size, generator=generator)
    token_ids = random.integers(0, model.config.vocab_size, len(text_times)).tolist()
    return Scene(token_ids, text_times, features, frame_times, turns)


# How a frame's visual tokens travel to the engine: as they are, or through a real FIFO.
Carry = Callable[[str, float, Tensor], Sequence[tuple[str, float, Tensor]]]


def at_once(frame_id: str, captured_s: float, features: Tensor) -> Sequence[tuple[str, float, Tensor]]:
    return [(frame_id, captured_s, features)]


def play(
    engine: Engine, scene: Scene, options: Any, *, carry: Carry = at_once
) -> Iterator[tuple[int, Tensor]]:
    """Serve a scene in the order of its times, saying its own tokens: yields positions and their logits [V].

    `carry` gets each frame when it is captured, and returns the frames that have come out at the other end.
    """
    camera, dialog, frame = "scene", "scene", 0
    engine.add_camera(camera)
    ends = [*scene.turns[1:], len(scene.token_ids)]
    for turn, (start, end) in enumerate(zip(scene.turns, ends, strict=True)):
        for position in range(start + scene.asked - 1, end):
            # Before a turn: frames up to the question; then those up to the moment at which the next token is made.
            moments = [scene.text_times[start]] if position == start + scene.asked - 1 else []
            moments += [scene.text_times[position + 1]] if position + 1 < end else []
            for number, moment in enumerate(moments):
                while frame < len(scene.frame_times) and scene.frame_times[frame] <= moment:
                    captured_s = scene.frame_times[frame]
                    engine.add_frames(
                        camera, carry(f"{captured_s * 1000:.0f}-{frame}", captured_s, scene.features[frame])
                    )
                    frame += 1
                if number == 0 and position == start + scene.asked - 1:
                    question = scene.token_ids[start : start + scene.asked]
                    if turn == 0:
                        engine.open_dialog(dialog, camera, question, options)
                    else:
                        engine.start_turn(dialog, question, options)
            if position + 1 < end:
                yield position, engine.logits([dialog])[0]
                engine.append_token(dialog, scene.token_ids[position + 1])
