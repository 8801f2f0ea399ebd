"""Attention to frames, as the definition says, and attention to text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.network.attention import FrameAttention, additive_mask, self_attention
from model.network.rope import RotaryEmbedding, rotate

G, H, P, D = 2, 4, 4, 16  # key/value heads, query heads, visual tokens, head size
ROPE = RotaryEmbedding(head_dim=D, theta=50.0, grid=2)


def scene(rows: int, tokens: int, frames: int, *, clips: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(rows + tokens)
    visible = torch.rand(rows, tokens, frames) > 0.5
    visible[0, 0] = False
    return {
        "query": torch.randn(rows, tokens, H, D),
        "keys": torch.randn(clips, frames, P, G, D),
        "values": torch.randn(clips, frames, P, G, D),
        "text": torch.randint(0, 40, (rows, tokens)),
        "frame": torch.randint(0, 40, (rows, frames)),
        "visible": visible,
        "clip": torch.arange(rows) % clips,
    }


def by_definition(s: dict[str, Tensor]) -> Tensor:
    """One token, one head at a time: keys at (f, f + y, f + x), softmax over all tokens of all visible frames."""
    out = torch.zeros_like(s["query"])
    rows, tokens, _, _ = s["query"].shape
    for row in range(rows):
        for token in range(tokens):
            seen = s["visible"][row, token]
            if not seen.any():
                continue
            for head in range(H):
                group = head * G // H
                rotation = ROPE.rotation(s["frame"][row][seen]).unsqueeze(2)
                keys = rotate(s["keys"][s["clip"][row], seen, :, group], rotation).flatten(0, 1)
                query = rotate(s["query"][row, token, head], ROPE.rotation(s["text"][row, token]))
                weights = (keys @ query / D**0.5).softmax(0)
                out[row, token, head] = weights @ s["values"][s["clip"][row], seen, :, group].flatten(0, 1)
    return out


def attended(s: dict[str, Tensor], *, shared: bool, flex: bool = False) -> Tensor:
    """What training computes of the scene; `shared`: all rows see clip 0."""
    query = rotate(s["query"], ROPE.rotation(s["text"]).unsqueeze(3))
    num_frames, dtype = s["keys"].shape[1], s["query"].dtype
    frames = None if shared else s["clip"][:, None] * num_frames + torch.arange(num_frames)
    attention = FrameAttention(ROPE, s["frame"], s["visible"], frames, dtype=dtype, flex=flex)
    return attention(query, s["keys"].flatten(0, 1), s["values"].flatten(0, 1))


@pytest.mark.parametrize(("rows", "tokens", "frames"), [(1, 1, 1), (3, 1, 6), (2, 5, 6), (4, 3, 2)])
def test_it_follows_the_definition(rows: int, tokens: int, frames: int):
    s = scene(rows, tokens, frames)
    torch.testing.assert_close(attended(s, shared=True), by_definition(s), atol=1e-5, rtol=1e-4)


def test_rows_pick_their_clips():
    s = scene(5, 4, 6, clips=3)
    torch.testing.assert_close(attended(s, shared=False), by_definition(s), atol=1e-5, rtol=1e-4)


def test_frames_that_nobody_sees_cost_nothing_and_leave_no_trace():
    s = scene(3, 4, 12, clips=2)
    s["visible"][..., :3] = s["visible"][..., 8:] = False
    s["keys"][:, :3] = s["values"][:, 8:] = torch.nan  # would show wherever they are read
    s["visible"][..., 5] = True
    torch.testing.assert_close(attended(s, shared=False), by_definition(s), atol=1e-5, rtol=1e-4)


def test_who_sees_nothing_gets_zero_and_no_gradient_is_nan():
    s = scene(2, 3, 4)
    s["visible"][1] = False
    for name in ("query", "keys", "values"):
        s[name].requires_grad_()
    out = attended(s, shared=True)
    assert out[1].abs().max() == 0
    assert out[0, 0].abs().max() == 0
    out.square().sum().backward()
    for name in ("query", "keys", "values"):
        gradient = s[name].grad
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["query", "keys", "values"])
def test_gradients_are_those_of_the_definition(name: str):
    gradients: list[Tensor] = []
    for way in (lambda s: attended(s, shared=True), by_definition):
        s = scene(3, 2, 5)
        s[name].requires_grad_()
        way(s).sin().sum().backward()
        gradient = s[name].grad
        assert gradient is not None
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_half_precision_comes_close():
    s = scene(2, 1, 5)
    wanted = by_definition(s)
    half = s | {name: s[name].bfloat16() for name in ("query", "keys", "values")}
    got = attended(half, shared=True)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, atol=0.05, rtol=0.05)


def test_text_reads_text_causally_with_and_without_a_mask():
    query, keys, values = torch.randn(2, 7, H, D), torch.randn(2, 7, G, D), torch.randn(2, 7, G, D)
    mask, _ = additive_mask(torch.ones(7, 7).tril().bool()[None, None], torch.float32)
    causal = self_attention(query, keys, values, None)
    torch.testing.assert_close(causal, self_attention(query, keys, values, mask.expand(2, 1, 7, 7)))
    last = self_attention(query[:, -1:], keys, values, None)
    torch.testing.assert_close(last, causal[:, -1:])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_the_whole_mask_shows() -> None:
    s = scene(3, 5, 6, clips=2)
    got = attended(s, shared=False, flex=True)
    torch.testing.assert_close(got, attended(s, shared=False))
