"""Train streamchat-tiny on live-world clips: the vision encoder stays as it was taught, everything else learns.

    python training/sft.py --clips clips --vision runs/vision/vision.safetensors --minutes 60 --out runs/tiny

One process, on a CPU or a GPU. The result in `--out` is a StreamChat folder that the services load as it is, with the
command, the seed and the loss curve that made it. Killed, it goes on from its last checkpoint when started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))
from model.config import StreamChatConfig, preset
from model.folder import load_tokenizer, save_folder
from model.layer import Layer
from model.network import StreamChat
from training.clips import Clip, clip_truths, find_clips, frame_times, read_all
from training.grounding import Grounding
from training.optimisation import RunLog, adamw, learning_rate, muon, set_learning_rate
from training.samples import Batch, Floats, Row, RowMaker, caption_rows, collate, flip_book_row, random_rows
from training.tiny_tokenizer import make_tokenizer
from training.topic import Topics
from training.world import TEST_SEEDS, World
from training.world_language import SLOTS

SPAN_S = 8.0  # a window of frames: this long from the first question on, and one FIFO before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how; kept in the folder that comes out."""

    seed: int = 1
    minutes: float = 60.0
    steps: int | None = None  # so many instead of so many minutes: then a run gives the same model every time
    peak_lr: float = 1.5e-3
    peak_muon_lr: float = 3e-3  # of the matrices within the layers
    weight_decay: float = 0.05
    clips_per_step: int = 8
    rows_per_clip: int = 6
    clip_norm: float = 1.0
    grounding: float = 0.3  # weight of the grounding loss
    topic: float = 0.1  # weight of the topic loss
    # The curriculum: first one picture, then finding the newest of several, then dialogs at the world's own pace.
    one_picture_steps: int = 450
    picture_steps: int = 1500  # steps before dialogs, those with one picture included
    flip_books: float = (
        0.65  # share of those steps, the others are captions; half as many go on beside dialogs
    )
    flip_book_frames: int = 18
    flip_book_rows: int = 4  # per clip
    save_every: int = 500  # steps between checkpoints
    report_every: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step is made from: rows, and which frames of which clips they look at."""

    batch: Batch
    clips: list[int]
    frames: np.ndarray  # int [C, F]: which frames of each clip


class Steps(IterableDataset[Step]):
    """An endless, seeded stream of steps."""

    def __init__(
        self,
        clips: list[Clip],
        tokenizer: PreTrainedTokenizerFast,
        config: StreamChatConfig,
        recipe: Recipe,
        num: int,
    ) -> None:
        self.clips, self.config, self.recipe, self.num_frames = clips, config, recipe, num
        self.maker = RowMaker(tokenizer, config.fifo_frames)
        self.pad_id = int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))  # type: ignore[arg-type]
        self.first = 0

    def __iter__(self) -> Iterator[Step]:
        worker = get_worker_info()
        number, stride = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            yield self.step(number)
            number += stride

    @property
    def window(self) -> int:
        """Frames of a window."""
        return min(int(SPAN_S * self.config.frames_per_second) + self.config.fifo_frames, self.num_frames)

    def step(self, number: int) -> Step:
        """The step of that number: the same for the same seed."""
        rng = np.random.default_rng([self.recipe.seed, 7, number])
        clips = [int(c) for c in rng.choice(len(self.clips), size=self.recipe.clips_per_step, replace=False)]
        recipe = self.recipe
        pictures = number < recipe.picture_steps
        capacity = 1 if number < recipe.one_picture_steps else int(rng.choice((1, 2, 4, 8, 16, 16)))
        kind = float(rng.random())
        if not pictures and kind > recipe.flip_books:
            return self.dialogs(rng, clips)
        if kind < recipe.flip_books * (1.0 if pictures else 0.5):
            return self.flip_books(rng, clips, capacity)
        return self.captions(rng, clips, capacity)

    def dialogs(self, rng: np.random.Generator, clips: list[int]) -> Step:
        """Dialogs at the clips' own pace."""
        starts = rng.integers(0, self.num_frames - self.window + 1, size=len(clips))
        longest = int(rng.choice((8, 14, 20, 36), p=(0.2, 0.35, 0.3, 0.15)))
        frames = starts[:, None] + np.arange(self.window)
        rows = [
            random_rows(rng, self.maker, world, times, self.recipe.rows_per_clip, SPAN_S, longest)
            for world, times in self._seen(clips, frames)
        ]
        return self._made(clips, frames, rows)

    def captions(self, rng: np.random.Generator, clips: list[int], capacity: int) -> Step:
        """One FIFO of frames of each clip, and short answers at once."""
        window = min(self.config.fifo_frames, capacity) + 1
        # Time is left to answer in.
        last = self.num_frames - window - int(0.5 * self.config.frames_per_second)
        frames = rng.integers(0, last + 1, size=len(clips))[:, None] + np.arange(window)
        rows = [
            caption_rows(rng, self.maker, world, times, self.recipe.rows_per_clip, capacity)
            for world, times in self._seen(clips, frames)
        ]
        return self._made(clips, frames, rows)

    def flip_books(self, rng: np.random.Generator, clips: list[int], capacity: int) -> Step:
        """Pictures of each clip in any order, and answers that go on while they are shown."""
        num, longest = min(self.recipe.flip_book_frames, self.num_frames), int(rng.choice((12, 20, 28)))
        frames = np.stack([rng.choice(self.num_frames, size=num, replace=False) for _ in clips])
        rows = [
            [
                flip_book_row(rng, self.maker, world, times, longest, capacity)
                for _ in range(self.recipe.flip_book_rows)
            ]
            for world, times in self._seen(clips, frames)
        ]
        return self._made(clips, frames, rows)

    def _seen(self, clips: list[int], frames: np.ndarray) -> Iterator[tuple[World, Floats]]:
        for clip, numbers in zip(clips, frames, strict=True):
            yield (
                self.clips[clip].world,
                frame_times(clip, self.num_frames, self.config.frames_per_second)[numbers],
            )

    def _made(self, clips: list[int], frames: np.ndarray, rows: list[list[Row]]) -> Step:
        clip_of_row = [place for place, made in enumerate(rows) for _ in made]
        batch = collate([row for made in rows for row in made], clip_of_row, self.pad_id)
        return Step(batch=batch, clips=clips, frames=frames)


def forward_loss(model: StreamChat, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy over the tokens that count, and the share of them that is right."""
    device = features.device
    ids = torch.from_numpy(batch.token_ids).to(device)
    logits = model(
        torch.from_numpy(batch.heard).to(device),
        torch.from_numpy(batch.text_index).to(device),
        features,
        torch.from_numpy(batch.clip_of_row).to(device),
        torch.from_numpy(batch.frame_index).to(device),
        torch.from_numpy(batch.visible).to(device),
        None,
    )
    counts = torch.from_numpy(batch.counts).to(device)[:, :-1]
    said, wanted = logits[:, :-1][counts], ids[:, 1:][counts]
    weights = torch.from_numpy(batch.weights).to(device).float()[:, :-1][counts]
    losses = functional.cross_entropy(said.float(), wanted, reduction="none")
    right = ((said.argmax(-1) == wanted) * weights).sum() / weights.sum()
    return (losses * weights).sum() / weights.sum(), right


@torch.inference_mode()
def encode_all(model: StreamChat, frames: np.ndarray, out: Path, batch: int = 100) -> np.ndarray:
    """The vision encoder's output [clips, N, P, Dv] for all frames, in a file that is mapped; made once."""
    if out.is_file():
        return np.lib.format.open_memmap(out, mode="r")
    vision = model.config.vision
    shape = (*frames.shape[:2], vision.num_visual_tokens, vision.hidden_size)
    part = out.with_suffix(".part.npy")
    features = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    for clip in range(len(frames)):
        features[clip] = model.vision(torch.from_numpy(frames[clip].copy())).numpy()
        if clip % 10 == 0 or clip + 1 == len(frames):
            print(f"\rencoded {clip + 1}/{len(frames)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    features.flush()
    part.rename(out)
    return np.lib.format.open_memmap(out, mode="r")


class Trainer:
    """The loop: steps until the time is up, a checkpoint now and then."""

    def __init__(
        self, model: StreamChat, steps: Steps, features: np.ndarray, recipe: Recipe, work: Path
    ) -> None:
        self.model, self.steps, self.features, self.recipe, self.work = model, steps, features, recipe, work
        self.truths = clip_truths(steps.clips, features.shape[1], model.config.frames_per_second)
        self.grounding = Grounding(steps.maker.tokenizer)
        for parameter in model.vision.parameters():
            parameter.requires_grad_(False)
        self.topics = Topics(model, steps.maker.tokenizer)
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in trained if p.ndim == 2 and "embed" not in n]
        others = [(n, p) for n, p in trained if p.ndim != 2 or "embed" in n]
        self.optimizers = {
            "muon": muon(matrices, recipe.peak_muon_lr, recipe.weight_decay),
            "adamw": adamw(others, recipe.peak_lr, recipe.weight_decay),
        }
        self.log = RunLog(work)
        self.number = 0
        self.before_s = 0.0
        self._resume()

    def run(self, device: str, workers: int) -> None:
        """Train until `recipe.minutes` or `recipe.steps` are over (counted over all tries)."""
        self.model.to(device).train()
        for optimizer in self.optimizers.values():
            optimizer.load_state_dict(optimizer.state_dict())  # its moments follow the weights
        self.steps.first = self.number
        loader = DataLoader(
            self.steps, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None
        )
        seen: list[tuple[float, ...]] = []
        for step in loader:
            done = self.done
            if done >= 1:
                break
            seen.append(self._step(step, learning_rate(done, 1.0), device))
            self.number += 1
            if self.number % self.recipe.report_every == 0:
                loss, right, grounding, topic = (sum(part) / len(seen) for part in zip(*seen, strict=True))
                parts = {"loss": loss, "right": right, "grounding": grounding, "topic": topic}
                self.log.report(self.number, **parts, done=done)
                seen = []
            if self.number % self.recipe.save_every == 0:
                self._save()
        self._save()

    @property
    def done(self) -> float:
        """Which share of the run is done."""
        if self.recipe.steps is not None:
            return self.number / self.recipe.steps
        return (self.before_s + self.log.elapsed_s) / 60 / self.recipe.minutes

    def _step(self, step: Step, lr: float, device: str) -> tuple[float, ...]:
        """`lr`: share of the peaks."""
        which = np.array(step.clips)[:, None], step.frames
        features = torch.from_numpy(self.features[which]).to(device)
        truth = torch.from_numpy(self.truths[which]).to(device)
        set_learning_rate(self.optimizers["adamw"], lr * self.recipe.peak_lr)
        set_learning_rate(self.optimizers["muon"], lr * self.recipe.peak_muon_lr)
        self.model.zero_grad(set_to_none=True)
        loss, right = forward_loss(self.model, step.batch, features)
        grounding = self.grounding.loss(self.model, features, truth)
        topic = self.topics.loss(step.batch)
        (loss + self.recipe.grounding * grounding + self.recipe.topic * topic).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return tuple(float(part.detach()) for part in (loss, right, grounding, topic))

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "number": self.number,
            "elapsed_s": self.before_s + self.log.elapsed_s,
        }
        part = self.work / "checkpoint.part"
        torch.save(state, part)
        part.rename(self.work / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.work / "checkpoint.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.number, self.before_s = state["number"], state["elapsed_s"]
        print(f"going on from step {self.number}", file=sys.stderr)


@torch.no_grad()
def start_as_copiers(model: StreamChat) -> None:
    """Let attention begin by handing on what it reads: output times value projection is a projection on a subspace.

    With grounding, what is read from a frame is near the words for it, so naming starts from the first step on.
    """
    size = model.config.head_dim
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    for layer in model.language.layers:
        assert isinstance(layer, Layer)
        values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        nn.init.orthogonal_(values)
        groups = values.unflatten(0, (-1, size)).repeat_interleave(heads_a_group, 0)  # [H, d, D]
        output.copy_(groups.permute(2, 0, 1).flatten(1) / heads_a_group)


@torch.no_grad()
def start_by_kinds(model: StreamChat, tokenizer: PreTrainedTokenizerFast) -> None:
    """Words of one kind (things, colours, ...) start near each other, as they are in a language model that has read.

    Then what a question is about can be found by its kind, and needs not be learnt word by word.
    """
    embeddings = model.language.embed_tokens.weight
    spread = float(embeddings.std())
    near = {kind: torch.randn(embeddings.shape[1]) * spread for kind in sorted(set(SLOTS.values()))}
    moved: set[int] = set()
    for word, kind in SLOTS.items():
        for space in ("", " "):
            ids: list[int] = tokenizer(space + word, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
            if len(ids) == 1 and ids[0] not in moved:
                embeddings[ids[0]] += near[kind]
                moved.add(ids[0])


@torch.no_grad()
def start_by_likeness(model: StreamChat) -> None:
    """The layers that look after text was read begin by looking for what is like the words at hand.

    The first cross layer looks before text is read: its gate starts small, lest what it sees drown the question.
    """
    first, *later = model.config.cross_layers
    size = model.config.head_dim
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    for index in later:
        layer = model.language.layers[index]
        assert isinstance(layer, Layer)
        keys = nn.init.orthogonal_(layer.self_attn.k_proj.weight).unflatten(0, (-1, size))
        # One head of each group: two that start alike would stay alike.
        queries = layer.self_attn.q_proj.weight.unflatten(0, (-1, heads_a_group, size))
        queries[:, 0] = keys
    layer = model.language.layers[first]
    assert isinstance(layer, Layer)
    assert layer.gate_cross is not None
    nn.init.constant_(layer.gate_cross, 0.1)


def make_model(vision: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> StreamChat:
    """A new tiny model around a taught vision encoder."""
    torch.manual_seed(seed)
    # No language model to protect: nothing need start small.
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer), gate_init=1.0))
    start_as_copiers(model)
    start_by_likeness(model)
    start_by_kinds(model, tokenizer)
    model.vision.load_state_dict(load_file(vision))
    return model


def main() -> None:
    """Read the command line, train, write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--clips", type=Path, nargs="+", required=True, help="folders that live_world.py wrote"
    )
    parser.add_argument("--vision", type=Path, required=True, help="what pretrain_vision.py wrote")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="so many, instead of --minutes")
    parser.add_argument(
        "--save-every", type=int, default=Recipe().save_every, help="steps between checkpoints"
    )
    parser.add_argument(
        "--picture-steps", type=int, default=Recipe().picture_steps, help="steps before dialogs at pace"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=Recipe().peak_lr)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--frames", type=Path, help="decoded frames, if pretrain_vision.py has made them already"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clips = [c for folder in options.clips for c in find_clips(folder)]
    if any(c.world.seed in TEST_SEEDS for c in clips):
        parser.error(f"--clips: seeds from {TEST_SEEDS.start} on are held out for tests; train on others")
    recipe = Recipe(
        seed=options.seed,
        minutes=options.minutes,
        steps=options.steps,
        picture_steps=options.picture_steps,
        peak_lr=options.lr,
        clips_per_step=min(Recipe().clips_per_step, len(clips)),
        save_every=options.save_every,
    )
    work = options.out / "run"
    work.mkdir(parents=True, exist_ok=True)
    # A run that goes on keeps its tokenizer: another one would give its words other numbers.
    known = (options.out / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(options.out) if known else make_tokenizer(options.out)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    model = make_model(options.vision, tokenizer, recipe.seed)
    size = model.config.vision.image_size
    frames = read_all(clips, model.config.frames_per_second, size, options.frames or work / "frames.npy")
    # In memory, not mapped: every step reads from all over it.
    features = np.array(encode_all(model, frames, work / "features.npy"))
    steps = Steps(clips, tokenizer, model.config, recipe, features.shape[1])
    trainer = Trainer(model, steps, features, recipe, work)
    trainer.run(options.device, options.workers)
    save_folder(model.cpu(), options.out)
    used = {
        "command": " ".join(["python", *sys.argv]),
        "recipe": {f: getattr(recipe, f) for f in recipe.__slots__},
    }
    (options.out / "recipe.json").write_text(json.dumps(used | {"steps": trainer.number}, indent=1) + "\n")


if __name__ == "__main__":
    main()
