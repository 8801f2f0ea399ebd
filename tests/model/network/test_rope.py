"""Rotations: like Hugging Face's on text, relative, and in the right sections."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

from model.network.rope import RotaryEmbedding, RotateInto, in_table, rotate, sections


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
def test_text_rotates_as_in_qwen2(head_dim: int):
    config = Qwen2Config(hidden_size=head_dim, num_attention_heads=1, num_key_value_heads=1)
    x, index = torch.randn(1, 1, 50, head_dim), torch.arange(50)[None]
    cos, sin = Qwen2RotaryEmbedding(config)(x, index)
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin)
    rotation = RotaryEmbedding(head_dim=head_dim, theta=10000.0, grid=4).rotation(index)
    torch.testing.assert_close(rotate(x, rotation[:, :, None]), wanted, atol=1e-5, rtol=1e-5)


def test_a_visual_token_rotates_by_frame_row_and_column():
    """(f, 0, 0) + (0, y, x) would be wrong: the frame's index counts in all three sections."""
    rope = RotaryEmbedding(head_dim=32, theta=100.0, grid=3)
    x, frame = torch.randn(9, 32), 7
    got = rotate(rotate(x, rope.grid_rotation(x.device)), rope.rotation(torch.tensor(frame))[:, None])
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
    rope = RotaryEmbedding(head_dim=64, theta=1e6, grid=2)
    query, key = torch.randn(64), torch.randn(64)
    near = rotate(query, rope.rotation(torch.tensor(9))) @ rotate(key, rope.rotation(torch.tensor(4)))
    moved = rotate(query, rope.rotation(torch.tensor(9 + far))) @ rotate(
        key, rope.rotation(torch.tensor(4 + far))
    )
    torch.testing.assert_close(moved, near, atol=1e-4, rtol=1e-4)


def test_gradient_is_the_opposite_rotation():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    rotation = RotaryEmbedding(head_dim=8, theta=10.0, grid=2).rotation(torch.arange(5))
    assert torch.autograd.gradcheck(lambda value: rotate(value, rotation), (x,))


def test_half_precision_is_rounded_once():
    x, rope = torch.randn(5, 8), RotaryEmbedding(head_dim=8, theta=10.0, grid=2)
    half, rotation = x.bfloat16(), rope.rotation(torch.arange(5))
    wanted = rotate(half.float(), rotation).bfloat16()
    torch.testing.assert_close(rotate(half, rotation), wanted, atol=0, rtol=0)


def test_tables_made_while_serving_can_train_later():
    rope = RotaryEmbedding(head_dim=8, theta=10.0, grid=2)
    with torch.inference_mode():
        rope.grid_rotation(torch.device("cpu"))
    x = torch.randn(4, 8, requires_grad=True)
    rotate(x, rope.grid_rotation(x.device)).sum().backward()
    assert x.grad is not None


def test_rotations_are_the_same_from_the_table():
    rope = RotaryEmbedding(head_dim=16, theta=1e4, grid=3)
    positions = torch.tensor([0, 3, 4095])
    known, computed = torch.empty(2, 2, 3, 16)
    rope.write_rotation(positions, known, in_table=in_table(positions.numpy()))
    rope.write_rotation(positions, computed, in_table=False)
    torch.testing.assert_close(known, computed)
    assert not in_table([4096])
    assert not in_table([3, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotating_in_place_or_into_more_is_rotating(dtype: torch.dtype):
    rope = RotaryEmbedding(head_dim=16, theta=1e4, grid=3)
    x, rotation = torch.randn(2, 3, 16, dtype=dtype), rope.rotation(torch.tensor([5, 70000])).unsqueeze(2)
    wanted = rotate(x, rotation)
    many, rotations = torch.empty(4, 2, 3, 16, dtype=dtype), rotation.unsqueeze(1).expand(2, 4, 2, 1, 16)
    torch.testing.assert_close(RotateInto(x, rotations, many)(), wanted.expand_as(many))
    RotateInto(x, rotation, x)()
    torch.testing.assert_close(x, wanted)
