"""The model's configuration: keyword-only frozen dataclasses, checked when made. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SHIPPED_FOLDER = PROJECT_ROOT / "model" / "streamchat-tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A SigLIP vision encoder (transformers' SiglipVisionModel, no pooling head)."""

    image_size: int = 224  # pixels, square
    patch_size: int = 14
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def num_visual_tokens(self) -> int:
        """P: visual tokens a frame."""
        return self.grid**2

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChatConfig:
    """Section 2.1 of the paper; the switches of its Table 3 are the three fields before the last."""

    name: str
    vision: VisionConfig = field(default_factory=VisionConfig)
    # The language model: Qwen2's shape (Llama's: attention_bias False).
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False
    attention_bias: bool = True  # q, k and v have biases
    max_position_embeddings: int = 32768
    # What makes it StreamChat.
    cross_attention_every: int = 4  # every n-th layer is a cross layer, the first one included
    gate_init: float = 0.1
    visual_ffn: bool = True
    gate: Literal["linear", "tanh"] = "linear"
    share_attention_parameters: bool = True
    # How it watches.
    fifo_frames: int = 32  # F
    frames_per_second: float = 5.0
    tokens_per_second: float | None = None  # the pace of its training data; None: as fast as it goes

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2 or self.head_dim < 8:
            raise ValueError(f"head_dim: got {self.head_dim}, wanted an even number of at least 8")
        if self.gate not in ("linear", "tanh"):
            raise ValueError(f"gate: got {self.gate!r}, wanted 'linear' or 'tanh'")
        if self.cross_attention_every < 1 or self.fifo_frames < 1 or self.frames_per_second <= 0:
            raise ValueError("cross_attention_every, fifo_frames and frames_per_second must be positive")

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Indices of the layers that look at the frames."""
        return tuple(range(0, self.num_hidden_layers, self.cross_attention_every))

    def save(self, folder: Path) -> None:
        """Write `config.json`."""
        values = {"model_type": "streamchat", **asdict(self)}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> StreamChatConfig:
        """Read `config.json`; raises FileNotFoundError or ValueError saying what is wrong with the folder."""
        path = folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no StreamChat folder: it has no config.json")
        values: dict[str, Any] = json.loads(path.read_text())
        kind = values.pop("model_type", None)
        if kind != "streamchat":
            raise ValueError(
                f"{path}: model_type is {kind!r}, wanted 'streamchat'; see `streamchat assemble`"
            )
        known = {f.name for f in fields(StreamChatConfig)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{path}: unknown fields {unknown}")
        values["vision"] = VisionConfig(**values["vision"])
        return StreamChatConfig(**values)


QWEN25_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
QWEN25_14B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY: dict[str, Any] = {
    "vision": VisionConfig(
        image_size=96,
        patch_size=32,
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=5,
    ),
    "vocab_size": 709,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "rope_theta": 1000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "cross_attention_every": 2,
    "fifo_frames": 16,
    "tokens_per_second": 5.0,
}


def preset(name: str, **changes: Any) -> StreamChatConfig:
    """`tiny`, `7b` or `14b`, with any field changed; raises ValueError for another name."""
    presets = {"tiny": TINY, "7b": QWEN25_7B, "14b": QWEN25_14B}
    if name not in presets:
        raise ValueError(f"preset: got {name!r}, wanted one of {', '.join(presets)}")
    values: dict[str, Any] = {"name": f"streamchat-{name}"}
    return StreamChatConfig(**(values | presets[name] | changes))
