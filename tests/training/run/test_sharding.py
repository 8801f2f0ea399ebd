"""Compiled layers with activation checkpointing: they share graphs, which fit all later batches."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedTokenizerFast

from model.config import preset
from model.network.streamchat import StreamChat
from training.data.micro_batch import MicroBatch, packed_micro_batch
from training.data.packing import Sample
from training.data.row_tokenizer import RowTokenizer
from training.data.training_row import TrainingRow, Turn
from training.optimise.objective import LossNormalizer, Objective
from training.run.recipe import smoke
from training.run.sharding import shard

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def batch(tokenizer: PreTrainedTokenizerFast, seed: int) -> MicroBatch:
    """Some dialogs of different lengths on videos of different lengths."""
    rng, rows = np.random.default_rng(seed), RowTokenizer(tokenizer, 16, 200)
    samples: list[Sample] = []
    for _ in range(3 + seed % 3):
        frames = np.arange(0.0, float(rng.integers(3, 8)), 0.4)
        answer = "The red dog moves. " * int(rng.integers(1, 5))
        turn = Turn(start_s=1.0, end_s=2.0, instruction="What is happening?", answer=answer)
        row = TrainingRow(video="a", turns=(turn,), kind="dense", source="t")
        pictures = rng.integers(0, 255, (len(frames), 96, 96, 3)).astype(np.uint8)
        samples.append(Sample(rows.tokens(row, frames), pictures))
    return packed_micro_batch(0, samples, 120, 0, 96)


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_and_checkpointed_layers_share_graphs_and_need_no_new_ones(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.compiler.set_default_backend("aot_eager")  # makes the graphs, and no kernels
    torch.compiler.reset()
    counters.clear()
    try:
        torch.manual_seed(0)
        plain = Objective(StreamChat(preset("tiny", vocab_size=len(tokenizer))))
        compiled = copy.deepcopy(plain)
        recipe = replace(smoke(), compile=True, checkpoint_activations=True)
        shard(compiled, init_device_mesh("cpu", (1,)), recipe)
        graphs: list[int] = []
        for step in range(5):
            made = batch(tokenizer, step)
            normalizer = LossNormalizer(made.loss_weight, 1.0)
            losses = [objective(made, normalizer, CPU)[0] for objective in (plain, compiled)]
            for loss in losses:
                loss.backward()
            torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
            graphs.append(counters["stats"]["unique_graphs"])
        assert 0 < graphs[2] == graphs[-1]
        num_layers = len(plain.model.language.layers) + len(plain.model.vision.encoder.encoder.layers)
        assert graphs[-1] < num_layers + len(plain.model.config.cross_layers)
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
    finally:
        torch.compiler.set_default_backend(None)
        torch.compiler.reset()
