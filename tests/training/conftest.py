"""Fixtures of the training tests: tokenizers, a few clips and a random model, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from model.checkpoint.folder import save_folder
from model.config import preset
from model.network.streamchat import StreamChat
from training.live_world.clips import Clip, find_clips
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.tiny_tokenizer import make_tokenizer
from training.live_world.world import TEST_SEEDS
from training.live_world.write_clips import write_clips


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Use one thread, because the matrices are small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with streamchat-tiny's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    """streamchat-tiny's tokenizer, as it is read from its folder."""
    return PreTrainedTokenizerFast.from_pretrained(str(tokenizer_folder))


@pytest.fixture(scope="session")
def dialog_tokenizer(tokenizer: PreTrainedTokenizerFast) -> DialogTokenizer:
    """Makes token rows for a FIFO of 16 frames."""
    return DialogTokenizer(tokenizer, capacity=16)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Two training clips."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(7, 2, folder)
    return find_clips(folder)


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Two held-out clips."""
    folder = tmp_path_factory.mktemp("held-out")
    write_clips(TEST_SEEDS.start, 2, folder)
    return find_clips(folder)


@pytest.fixture(scope="session")
def random_model(tokenizer: PreTrainedTokenizerFast) -> StreamChat:
    """streamchat-tiny with random weights and large gates, so that frames and every path change its output.

    Its embeddings are not tied, because a random model with tied ones repeats its last token.
    """
    torch.manual_seed(0)
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer), tie_word_embeddings=False)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_cross", "gate_visual")):
            torch.nn.init.normal_(parameter, std=1.0)
    return model


@pytest.fixture(scope="session")
def random_folder(
    random_model: StreamChat, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A StreamChat folder with random weights."""
    out = tmp_path_factory.mktemp("model")
    save_folder(random_model, out, tokenizer=tokenizer_folder)
    return out


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """This process as the only worker of a run."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
