"""Pretrain streamchat-tiny's vision encoder to classify what is in each place of a picture.

The paper's encoder (SigLIP) is pretrained, and this is the small model's substitute. Four linear heads on the encoder's
visual tokens classify the thing, the colour, the happening and the place itself. They are not saved.

    python training/live_world/pretrain_vision.py --clips clips --held-out dev --minutes 12 --out runs/vision
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.config import preset
from model.network.vision import VisionTower
from training.live_world.clip_frames import decode_all
from training.live_world.clips import Clip, dataset_labels, find_clips, training_clips
from training.live_world.world import COLOURS, HAPPENINGS, PLACES, THINGS
from training.monitoring.run_log import RunLog
from training.optimise.learning_rate import learning_rate, set_learning_rate
from training.optimise.optimizers import adamw

NUM_CLASSES = (1 + len(THINGS), 1 + len(COLOURS), 1 + len(HAPPENINGS), len(PLACES))


class PlaceClassifier(nn.Module):
    """The encoder with a classification head for each of the four labels."""

    def __init__(self, tower: VisionTower, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleList(nn.Linear(width, num) for num in NUM_CLASSES)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures [N, S, S, 3] uint8 -> four logits [N, 9, classes]."""
        tokens = self.tower(pictures)
        return [head(tokens) for head in self.heads]


def with_place_numbers(labels: np.ndarray) -> Tensor:
    """Add each place's own number to labels [N, 9, 3]: [N, 9, 4]. It keeps the position in the visual token."""
    classes = torch.from_numpy(labels).long()
    places = torch.arange(len(PLACES)).expand(len(classes), -1)
    return torch.cat([classes, places.unsqueeze(-1)], -1)


def augment(pictures: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Change brightness and contrast a little and shift by up to two pixels."""
    dy, dx = rng.integers(-2, 3, size=2)
    pictures = np.roll(pictures, (int(dy), int(dx)), axis=(1, 2))
    contrast = rng.uniform(0.85, 1.15, size=(len(pictures), 1, 1, 1)).astype(np.float32)
    brightness = rng.uniform(-14, 14, size=(len(pictures), 1, 1, 1)).astype(np.float32)
    changed = (pictures.astype(np.float32) - 128) * contrast + 128 + brightness
    return torch.from_numpy(np.clip(changed, 0, 255).astype(np.uint8))


def accuracies(logits: list[Tensor], labels: Tensor) -> dict[str, float]:
    """Accuracy of each label over places with a thing, and of `presence` (a thing or none) over all places."""
    present = labels[..., 0] > 0
    names = ("thing", "colour", "happening", "place")
    shares = {
        name: float((logit.argmax(-1) == labels[..., i])[present].float().mean())
        for i, (name, logit) in enumerate(zip(names, logits, strict=True))
    }
    shares["presence"] = float(((logits[0].argmax(-1) > 0) == present).float().mean())
    return shares


def train(
    clips: list[Clip],
    held_out: list[Clip],
    minutes: float,
    batch_size: int,
    peak_lr: float,
    out: Path,
    report_every: int = 200,
    steps: int | None = None,
    start: Path | None = None,
) -> None:
    """Train for `minutes`, or for `steps` if given; writes `vision.safetensors` and `log.jsonl`."""
    config = preset("tiny")
    rate = config.frames_per_second
    # In memory, not memory-mapped: every step reads random frames.
    frames = np.array(decode_all(clips, rate, config.vision.image_size, out / "frames.npy"))
    labels = dataset_labels(clips, frames.shape[1], rate)
    test_frames = decode_all(held_out, rate, config.vision.image_size, out / "held_out.npy")
    test_labels = dataset_labels(held_out, test_frames.shape[1], rate)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    classifier = PlaceClassifier(VisionTower(config.vision), config.vision.hidden_size)
    if start is not None:
        classifier.tower.load_state_dict(load_file(start))
    optimizer = adamw(classifier.named_parameters(), peak_lr, 0.05)
    log = RunLog(out)
    step = 0
    while (done := step / steps if steps else log.elapsed_s / 60 / minutes) < 1:
        clip = rng.integers(len(clips), size=batch_size)
        frame = rng.integers(frames.shape[1], size=batch_size)
        set_learning_rate(optimizer, lr := learning_rate(done, peak_lr))
        logits = classifier(augment(frames[clip, frame], rng))
        target = with_place_numbers(labels[clip, frame])
        losses = [
            functional.cross_entropy(logit.flatten(0, 1), target[..., i].flatten())
            for i, logit in enumerate(logits)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        if step % report_every == 0:
            some = rng.integers(len(held_out), size=200), rng.integers(test_frames.shape[1], size=200)
            with torch.inference_mode():
                test_logits = classifier(torch.from_numpy(test_frames[some]))
            shares = accuracies(test_logits, with_place_numbers(test_labels[some]))
            log.report(step, loss=sum(float(x.detach()) for x in losses), lr=lr, **shares)
            save_file(classifier.tower.state_dict(), out / "vision.safetensors")
        step += 1
    save_file(classifier.tower.state_dict(), out / "vision.safetensors")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="folders of training clips")
    parser.add_argument(
        "--held-out", type=Path, required=True, help="folder of clips to measure on while training"
    )
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights of an earlier run to start from")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        clips, held_out = training_clips(options.clips), find_clips(options.held_out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    train(
        clips,
        held_out,
        options.minutes,
        options.batch,
        options.lr,
        options.out,
        start=options.start,
    )


if __name__ == "__main__":
    main()
