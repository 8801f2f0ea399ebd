"""Packing: every sample gets a row with room, no sample sees another, and the loss stays the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from training.data.micro_batch import MicroBatch, packed_micro_batch
from training.data.packing import Sample, bins
from training.data.row_tokenizer import RowTokenizer
from training.data.training_row import TrainingRow, Turn
from training.optimise.objective import LossNormalizer, Objective

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 120))
def test_every_sample_is_in_one_row_and_no_row_is_too_long(lengths: list[int], longest: int) -> None:
    rows = bins(lengths, longest)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= longest for row in rows)


def some_samples(tokenizer: PreTrainedTokenizerFast, num: int) -> list[Sample]:
    """Dialogs of different lengths on videos of different lengths. One has no video."""
    text, rng = RowTokenizer(tokenizer, 16, 200), np.random.default_rng(3)
    made: list[Sample] = []
    for number in range(num):
        frames = np.arange(0.0, 3.0 + 2 * number, 0.4)
        turns = tuple(
            Turn(
                start_s=1.0 + t,
                end_s=2.0 + t,
                instruction="What is happening?",
                answer="The red dog moves. " * (t + 1),
            )
            for t in range(1 + number % 3)
        )
        row = TrainingRow(video="a", turns=turns, kind="dense", source="test")
        if number == 2:
            row, frames = TrainingRow(video="", turns=turns, kind="text", source="test"), np.zeros(0)
        pictures = rng.integers(0, 255, (len(frames), 96, 96, 3)).astype(np.uint8)
        made.append(Sample(text.tokens(row, frames), pictures))
    return made


def packed_batch(samples: list[Sample], longest: int) -> MicroBatch:
    return packed_micro_batch(0, samples, longest, 0, 96)


@pytest.mark.parametrize("longest", [90, 200, 1000])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_samples(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat, longest: int
) -> None:
    samples = some_samples(tokenizer, 5)
    packed = packed_batch(samples, longest)
    normalizer = LossNormalizer(packed.loss_weight, 1.0)
    objective = Objective(random_model.requires_grad_(True))
    together, values = objective(packed, normalizer, CPU)
    together.backward()
    gradients = [p.grad.clone() if p.grad is not None else None for p in random_model.parameters()]
    random_model.zero_grad()
    alone = [objective(packed_batch([sample], 300), normalizer, CPU) for sample in samples]
    loss = torch.stack([loss for loss, _ in alone]).sum()
    loss.backward()
    torch.testing.assert_close(loss, together, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum(each for _, each in alone), values, rtol=1e-5, atol=1e-6)
    for one, parameter in zip(gradients, random_model.parameters(), strict=True):
        assert (one is None) == (parameter.grad is None)
        if one is not None:
            torch.testing.assert_close(parameter.grad, one, rtol=1e-3, atol=1e-5)
    random_model.zero_grad()


def test_nothing_leaks_between_samples_of_a_row(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat
) -> None:
    """Other pictures and words of one sample leave the states of the other samples equal, bit for bit."""
    samples = some_samples(tokenizer, 3)
    packed = packed_batch(samples, 1000)
    assert packed.segments is not None
    assert len(packed.segments) == 1
    other = 255 - samples[0].pictures
    changed = packed_batch([Sample(samples[0].tokens, other), *samples[1:]], 1000)
    changed.tokens.input_ids[0][
        packed.segments[0] == (changed_segment := segment_of(packed, samples[0]))
    ] += 1
    before, after = states_of(random_model, packed), states_of(random_model, changed)
    same = torch.from_numpy(packed.segments[0] != changed_segment)
    assert torch.equal(before[0, same], after[0, same])
    assert not torch.equal(before[0, ~same], after[0, ~same])


def segment_of(batch: MicroBatch, sample: Sample) -> int:
    assert batch.segments is not None
    lengths = [int((batch.segments[0] == s).sum()) for s in range(3)]
    return lengths.index(len(sample.tokens.token_ids))


def states_of(model: StreamChat, batch: MicroBatch) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        kept.append(output)

    hook = model.language.norm.register_forward_hook(keep)
    with torch.no_grad():
        Objective(model)(batch, LossNormalizer(1.0, 1.0), CPU)
    hook.remove()
    return kept[0].view(*batch.tokens.input_ids.shape, -1)


def test_a_micro_batch_without_samples_has_no_loss_and_a_backward_pass(random_model: StreamChat) -> None:
    empty = packed_batch([], 64)
    assert (empty.loss_weight, empty.num_tokens, empty.num_frames) == (0.0, 0, 0)
    loss, _ = Objective(random_model.requires_grad_(True))(empty, LossNormalizer(1.0, 1.0), CPU)
    loss.backward()
    assert float(loss.detach()) == 0.0
    gradients = [p.grad for p in random_model.parameters()]
    assert all(g is None or not g.any() for g in gradients)
    random_model.zero_grad()
