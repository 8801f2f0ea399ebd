"""Rotations: like Hugging Face's on text, relative, and in the right sections."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

from model.network.rope import Rope, TurnInPlace, is_near, rotate, sections


@pytest.mark.parametrize(
    ("head_dim", "wanted"), [(128, (16, 24, 24)), (64, (8, 12, 12)), (32, (4, 6, 6)), (16, (2, 3, 3))]
)
def test_sections_keep_their_proportions(head_dim: int, wanted: tuple[int, int, int]):
    assert sections(head_dim) == wanted


@pytest.mark.parametrize("head_dim", [8, 10, 18, 80])
def test_sections_use_every_pair(head_dim: int):
    assert sum(sections(head_dim)) == head_dim // 2
    assert min(sections(head_dim)) >= 1


@pytest.mark.parametrize("head_dim", [16, 32, 128])
def test_text_turns_as_in_qwen2(head_dim: int):
    config = Qwen2Config(hidden_size=head_dim, num_attention_heads=1, num_key_value_heads=1)
    x, index = torch.randn(1, 1, 50, head_dim), torch.arange(50)[None]
    cos, sin = Qwen2RotaryEmbedding(config)(x, index)
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin)
    turn = Rope(head_dim=head_dim, theta=10000.0, grid=4).turn(index)
    torch.testing.assert_close(rotate(x, (turn[0][:, None], turn[1][:, None])), wanted, atol=1e-5, rtol=1e-5)


def test_a_visual_token_turns_by_frame_row_and_column():
    """(f, 0, 0) + (0, y, x) would be wrong: the frame's index counts in all three sections."""
    rope = Rope(head_dim=32, theta=100.0, grid=3)
    x, frame = torch.randn(9, 32), 7
    cos, sin = rope.turn(torch.tensor(frame))
    got = rotate(rotate(x, rope.place(x.device)), (cos, sin))
    frequencies = 100.0 ** (-torch.arange(0, 32, 2) / 32)
    for token in range(9):
        y, angles = divmod(token, 3)[0], torch.empty(16)
        angles[:4] = frame * frequencies[:4]
        angles[4:10] = (frame + y) * frequencies[4:10]
        angles[10:] = (frame + token % 3) * frequencies[10:]
        first, second = x[token].chunk(2)
        wanted = torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
        )
        torch.testing.assert_close(got[token], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("far", [0, 1000, 2_000_000_000])
def test_scores_depend_on_differences_only_even_after_years(far: int):
    rope = Rope(head_dim=64, theta=1e6, grid=2)
    query, key = torch.randn(64), torch.randn(64)
    near = rotate(query, rope.turn(torch.tensor(9))) @ rotate(key, rope.turn(torch.tensor(4)))
    moved = rotate(query, rope.turn(torch.tensor(9 + far))) @ rotate(key, rope.turn(torch.tensor(4 + far)))
    torch.testing.assert_close(moved, near, atol=1e-4, rtol=1e-4)


def test_gradient_is_the_opposite_turn():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    turn = Rope(head_dim=8, theta=10.0, grid=2).turn(torch.arange(5))
    assert torch.autograd.gradcheck(lambda value: rotate(value, turn), (x,))


def test_half_precision_is_rounded_once():
    x, turn = torch.randn(5, 8), Rope(head_dim=8, theta=10.0, grid=2).turn(torch.arange(5))
    half = x.bfloat16()
    torch.testing.assert_close(rotate(half, turn), rotate(half.float(), turn).bfloat16(), atol=0, rtol=0)


def test_tables_made_while_serving_can_train_later():
    rope = Rope(head_dim=8, theta=10.0, grid=2)
    with torch.inference_mode():
        rope.place(torch.device("cpu"))
    x = torch.randn(4, 8, requires_grad=True)
    rotate(x, rope.place(x.device)).sum().backward()
    assert x.grad is not None


def test_turns_are_the_same_from_the_table():
    rope = Rope(head_dim=16, theta=1e4, grid=3)
    index = torch.tensor([0, 3, 4095])
    near, far = torch.empty(2, 2, 3, 16)
    rope.turns(index, near, near=is_near(index.numpy()))
    rope.turns(index, far, near=False)
    torch.testing.assert_close(near, far)
    assert not is_near([4096])
    assert not is_near([3, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turning_in_place_is_rotating(dtype: torch.dtype):
    rope = Rope(head_dim=16, theta=1e4, grid=3)
    index, x = torch.tensor([5, 70000]), torch.randn(2, 3, 16, dtype=dtype)
    turns = torch.empty(2, 2, 16)
    rope.turns(index, turns, near=False)
    cos, sin = turns.unsqueeze(2)
    wanted = rotate(x, (cos[..., 8:], sin[..., 8:]))
    TurnInPlace(x, cos, sin)()
    torch.testing.assert_close(x, wanted)
    torch.testing.assert_close(turns[0, :, 8:], rope.turn(index)[0])
