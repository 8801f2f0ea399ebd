"""Alternatives to StreamChat, made from transformers' own parts with the same weights.

Letters: F frames, P visual tokens a frame, D the language model's width.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.config import StreamChatConfig
from model.network.streamchat import StreamChat


def hugging_face(model: StreamChat) -> Qwen2ForCausalLM:
    """transformers' Qwen2 with our language model's weights (shared, not copied)."""
    config = _qwen2(model.config)
    with torch.device("meta"):
        peer = Qwen2ForCausalLM(config)
    ours = {name: weight for name, weight in model.language.state_dict().items() if _is_qwen2(name)}
    weights = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in ours.items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    peer.load_state_dict(weights, assign=True)
    peer.tie_weights()
    # Buffers that are in no checkpoint are still on the meta device: create them where the weights are.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(model.language.norm.weight.device)
    return peer.eval()


def _is_qwen2(name: str) -> bool:
    return not any(part in name for part in ("visual", "gate_cross", "cross_attn"))


def _qwen2(config: StreamChatConfig) -> Qwen2Config:
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    return Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **attention,
    )


@torch.inference_mode()
def generate(peer: Any, prompt: list[int], num: int) -> list[int]:
    """`num` tokens by transformers' own `generate`, greedy."""
    ids = torch.tensor([prompt], device=peer.device)
    options: dict[str, Any] = {"max_new_tokens": num, "min_new_tokens": num, "do_sample": False}
    made: Tensor = peer.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    return made[0, len(prompt) :].tolist()


class Llava:
    """LLaVA: frames are in the self-attention's context, before the text, so a new frame means a new prefill.

    The adapter's output of old frames is cached, and only the last token's logits are computed. Nothing more can be
    cached: when the oldest frame leaves, every position after it changes.
    """

    def __init__(self, model: StreamChat, peer: Qwen2ForCausalLM, prompt: list[int]) -> None:
        self._adapter, self._peer = model.adapter, peer
        self._frames: deque[Tensor] = deque(maxlen=model.config.fifo_frames)  # [P, D] each
        self._text = list(prompt)
        self._cache: Any = None

    @torch.inference_mode()
    def add_frame(self, features: Tensor) -> None:
        """Add a frame, [P, Dv]."""
        self._frames.append(self._adapter(features))

    @torch.inference_mode()
    def next_token_with_new_frames(self) -> int:
        """The next token, from all present frames."""
        words = self._peer.model.embed_tokens(torch.tensor(self._text, device=self._peer.device))
        return self._forward({"inputs_embeds": torch.cat([*self._frames, words])[None]}, None)

    @torch.inference_mode()
    def next_token(self) -> int:
        """The next token, from the frames of the last prefill."""
        return self._forward(
            {"input_ids": torch.tensor([self._text[-1:]], device=self._peer.device)}, self._cache
        )

    def _forward(self, inputs: dict[str, Tensor], cache: Any) -> int:
        out = self._peer(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self._text.append(int(out.logits[0, -1].argmax()))
        return self._text[-1]
