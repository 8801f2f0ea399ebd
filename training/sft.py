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
from training.optimisation import RunLog, adamw, learning_rate, set_learning_rate
from training.samples import Batch, RowMaker, caption_rows, collate, random_rows
from training.tiny_tokenizer import make_tokenizer
from training.world import TEST_SEEDS

SPAN_S = 8.0  # a window of frames: this long from the first question on, and one FIFO before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how; kept in the folder that comes out."""

    seed: int = 1
    minutes: float = 60.0
    steps: int | None = None  # so many instead of so many minutes: then a run gives the same model every time
    peak_lr: float = 1.5e-3
    weight_decay: float = 0.05
    clips_per_step: int = 8
    rows_per_clip: int = 6
    clip_norm: float = 1.0
    grounding: float = 0.3  # weight of the grounding loss
    caption_steps: int = 800  # of the start: short answers about the newest frame, before whole dialogs
    save_every: int = 500  # steps between checkpoints
    report_every: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step is made from: rows, and which frames of which clips they look at."""

    batch: Batch
    clips: list[int]
    starts: list[int]  # first frame of the window, per clip
    window: int  # frames


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
        if number < self.recipe.caption_steps:
            return self._captions(rng, clips)
        starts = [int(s) for s in rng.integers(0, self.num_frames - self.window + 1, size=len(clips))]
        longest = int(rng.choice((8, 14, 20, 36), p=(0.2, 0.35, 0.3, 0.15)))
        rows, clip_of_row = [], []
        for place, (clip, start) in enumerate(zip(clips, starts, strict=True)):
            times = frame_times(clip, self.num_frames, self.config.frames_per_second)[
                start : start + self.window
            ]
            made = random_rows(
                rng, self.maker, self.clips[clip].world, times, self.recipe.rows_per_clip, SPAN_S, longest
            )
            rows += made
            clip_of_row += [place] * len(made)
        batch = collate(rows, clip_of_row, self.pad_id)
        return Step(batch=batch, clips=clips, starts=starts, window=self.window)

    def _captions(self, rng: np.random.Generator, clips: list[int]) -> Step:
        """A step of the first part of the run: one FIFO of frames of each clip, and short answers at once."""
        window = self.config.fifo_frames + 1
        last = (
            self.num_frames - window - int(0.5 * self.config.frames_per_second)
        )  # time is left to answer in
        starts = [int(s) for s in rng.integers(0, last + 1, size=len(clips))]
        rows, clip_of_row = [], []
        for place, (clip, start) in enumerate(zip(clips, starts, strict=True)):
            times = frame_times(clip, self.num_frames, self.config.frames_per_second)[start : start + window]
            rows += caption_rows(rng, self.maker, self.clips[clip].world, times, self.recipe.rows_per_clip)
            clip_of_row += [place] * self.recipe.rows_per_clip
        return Step(batch=collate(rows, clip_of_row, self.pad_id), clips=clips, starts=starts, window=window)


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
        self.optimizer = adamw(model.named_parameters(), recipe.peak_lr, recipe.weight_decay)
        self.log = RunLog(work)
        self.number = 0
        self.before_s = 0.0
        self._resume()

    def run(self, device: str, workers: int) -> None:
        """Train until `recipe.minutes` or `recipe.steps` are over (counted over all tries)."""
        self.model.to(device).train()
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # its moments follow the weights
        self.steps.first = self.number
        loader = DataLoader(
            self.steps, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None
        )
        seen: list[tuple[float, float, float]] = []
        for step in loader:
            done = self.done
            if done >= 1:
                break
            seen.append(self._step(step, learning_rate(done, self.recipe.peak_lr), device))
            self.number += 1
            if self.number % self.recipe.report_every == 0:
                loss, right, grounding = (sum(part) / len(seen) for part in zip(*seen, strict=True))
                self.log.report(self.number, loss=loss, right=right, grounding=grounding, done=done)
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

    def _step(self, step: Step, lr: float, device: str) -> tuple[float, float, float]:
        places = [(c, slice(s, s + step.window)) for c, s in zip(step.clips, step.starts, strict=True)]
        features = torch.from_numpy(np.stack([self.features[place] for place in places])).to(device)
        truth = torch.from_numpy(np.stack([self.truths[place] for place in places])).to(device)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss, right = forward_loss(self.model, step.batch, features)
        grounding = self.grounding.loss(self.model, features, truth)
        (loss + self.recipe.grounding * grounding).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return float(loss.detach()), float(right), float(grounding.detach())

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
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
        self.optimizer.load_state_dict(state["optimizer"])
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


def make_model(vision: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> StreamChat:
    """A new tiny model around a taught vision encoder."""
    torch.manual_seed(seed)
    # No language model to protect: nothing need start small.
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer), gate_init=1.0))
    start_as_copiers(model)
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
    parser.add_argument("--caption-steps", type=int, default=Recipe().caption_steps, help="see the recipe")
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
        caption_steps=options.caption_steps,
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
