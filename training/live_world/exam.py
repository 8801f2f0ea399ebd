"""How right a model's answers are on held-out live-world clips, looking again (`live`) and not (`frozen`).

    python training/live_world/write_clips.py --seed 1000000 --num 200 --out held_out
    python training/live_world/exam.py --model model/streamchat-tiny --clips held_out --out results

Answers are decoded freely, token by token, on the clip's own clock: a frame each 0.2 s, a token each 0.2 s. They are
judged as `training/live_world/judge.py` says. Writes `results.json`, `answers.jsonl`, `table.md` and `accuracy.png`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.checkpoint.weights import Weights, dtype_of, quantise_to, weights_named
from model.engine.dialog import Options
from model.engine.engine import Engine
from model.network.streamchat import StreamChat
from training.data.samples import RowMaker, collate
from training.evaluation.spoken_answer import SpokenAnswer
from training.evaluation.streaming_samples import sample_name
from training.live_world.answers import SLOTS, reference_answer
from training.live_world.clips import Clip, find_clips, question_of, read_frames
from training.live_world.judge import END, Verdict, judge, share_right, spoken_words
from training.live_world.questions import KINDS, Question
from training.live_world.world import TEST_SEEDS

CONTEXTS = ("live", "frozen")
TICK_S = 0.2  # a token each
PHASE_S = 0.05  # frames are this old when a token is made
MAX_TOKENS = 40


@dataclass(slots=True)
class Asked:
    """A question put to the model, and what it said."""

    name: str
    context: str
    question: Question
    ask_s: float
    asked_seen_s: float = 0.0
    tokens: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    ended: bool = False
    done: bool = False


def tick_at(time_s: float) -> float:
    """The first tick at or after a time."""
    return float(np.ceil((time_s - PHASE_S) / TICK_S - 1e-9)) * TICK_S + PHASE_S


class Examiner:
    """Asks a model about clips, in simulated time."""

    def __init__(
        self, model: StreamChat, tokenizer: PreTrainedTokenizerFast, weights: Weights = "float32"
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._quantise = quantise_to(weights)
        for part in (model.language, model.adapter):  # the encoder is a service of its own, in float32
            part.to(dtype_of(weights, "cpu"))
        self.rate = model.config.frames_per_second
        self.maker = RowMaker(tokenizer, model.config.fifo_frames)
        self.stop_id = self.maker.end_id
        self.state_ids = {self.maker.pieces(space + word)[0] for word in SLOTS for space in ("", " ")}
        self.end_ids = {self.maker.pieces(mark)[0] for mark in END}

    @torch.inference_mode()
    def ask(
        self, clip: Clip, rows: Sequence[dict[str, Any]], contexts: Sequence[str] = CONTEXTS
    ) -> list[Asked]:
        """All questions of a clip, in all contexts, answered together: one step a tick for all of them."""
        times, pictures = read_frames(clip.path, self.rate, self.model.config.vision.image_size)
        features = self.model.vision(torch.from_numpy(pictures))
        with torch.inference_mode(False):
            model = copy.deepcopy(self.model) if self._quantise else self.model  # an engine uses it up
            engine = Engine(model, max_dialogs=len(rows) * len(contexts), quantise=self._quantise)
        engine.add_camera("clip")
        asked = [
            Asked(f"{i}-{c}", c, question_of(row), tick_at(row["ask_s"]))
            for i, row in enumerate(rows)
            for c in contexts
        ]
        seen = 0
        for tick in range(int(clip.world.duration_s / TICK_S)):
            now_s = tick * TICK_S + PHASE_S
            while seen < len(times) and times[seen] <= now_s:
                engine.add_frame("clip", str(seen), float(times[seen]), features[seen])
                seen += 1
            newest_s = float(times[seen - 1])
            for one in asked:
                if abs(one.ask_s - now_s) < 1e-6:
                    one.asked_seen_s = newest_s
                    self._open(engine, one)
            self._step(engine, [a for a in asked if a.ask_s <= now_s + 1e-6 and not a.done], newest_s)
        return asked

    def _open(self, engine: Engine, one: Asked) -> None:
        prompt = self.maker.prompt((one.question.instruction,))
        options = Options(
            visual_context="frozen" if one.context == "frozen" else "live",
            max_tokens=MAX_TOKENS,
            stop_ids=frozenset({self.stop_id}),
        )
        engine.open(one.name, "clip", prompt, options)

    def _step(self, engine: Engine, asked: Sequence[Asked], newest_s: float) -> None:
        """`newest_s`: what a live token can see; frozen answers are judged by it too, for they are spoken now."""
        if not asked:
            return
        by_name = {a.name: a for a in asked}
        for made in engine.step(list(by_name)):
            one = by_name[made.dialog_id]
            one.ended = made.token_id == self.stop_id
            one.done = made.finished is not None
            if not one.ended:
                one.tokens.append((str(self.tokenizer.decode([made.token_id])), newest_s))

    @torch.inference_mode()
    def forward_right(self, clip: Clip, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """State-bearing words of the right answers that the training forward predicts, and how many there are.

        As in a spoken answer, what a sentence tells is decided by its other words: where one of them is predicted
        wrongly, so are the state-bearing words that come after it.
        """
        times, pictures = read_frames(clip.path, self.rate, self.model.config.vision.image_size)
        features = self.model.vision(torch.from_numpy(pictures))[None]
        made = []
        for row in rows:
            ask_s = tick_at(row["ask_s"])
            seen = lambda time_s: float(times[np.searchsorted(times, time_s + 1e-9, side="right") - 1])  # noqa: E731
            said = reference_answer(
                question_of(row), clip.world, ask_s, 1 / TICK_S, MAX_TOKENS, seen, self.maker.num_pieces
            )
            made.append(self.maker.row(row["instruction"], said, times))
        batch = collate(made, [0] * len(made), 0)
        tensors = (batch.token_ids, batch.text_index, batch.clip_of_row, batch.frame_index, batch.visible)
        ids, index, clip_of_row, frame_index, visible = (torch.from_numpy(t) for t in tensors)
        logits = self.model(ids, index, features, clip_of_row, frame_index, visible)
        predicted, counts = logits[:, :-1].argmax(-1), torch.from_numpy(batch.counts)[:, :-1]
        told = [self.told_right(p[c], w[c]) for p, w, c in zip(predicted, ids[:, 1:], counts, strict=True)]
        return sum(right for right, _ in told), sum(num for _, num in told)

    def told_right(self, predicted: Tensor, wanted: Tensor) -> tuple[int, int]:
        """Right state-bearing tokens of one answer [T], and how many it has."""
        right = num = 0
        tells_this = True
        for said, token in zip(predicted.tolist(), wanted.tolist(), strict=True):
            if token in self.state_ids:
                right, num = right + (tells_this and said == token), num + 1
            elif token in self.end_ids:
                tells_this = True
            else:
                tells_this = tells_this and said == token
        return right, num


def verdicts_of(clip: Clip, asked: Sequence[Asked]) -> dict[str, list[Verdict]]:
    """Judged words by context."""
    out: dict[str, list[Verdict]] = {c: [] for c in CONTEXTS}
    for one in asked:
        words = spoken_words(one.tokens)
        out[one.context] += judge(one.question, clip.world, one.asked_seen_s, words, one.ended)
    return out


def answer_rows(clip: Clip, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """What was said, by the names that `training/evaluation/streaming_samples.py` gives to the questions."""
    for one in asked:
        number, _, context = one.name.partition("-")
        spoken = SpokenAnswer(tokens=tuple(one.tokens), asked_seen_s=one.asked_seen_s, ended=one.ended)
        yield {"sample": sample_name(clip, int(number)), "candidate": context, **spoken.as_dict()}


def summary(verdicts: dict[str, list[Verdict]]) -> dict[str, Any]:
    """Shares of right words: per kind of question and in all, before and after the question, by context."""
    rows: dict[str, Any] = {}
    for kind in (*KINDS, "all"):
        rows[kind] = {}
        for context, all_verdicts in verdicts.items():
            mine = [v for v in all_verdicts if kind in ("all", v.kind)]
            for name, after in (("before", False), ("after", True)):
                part = [v for v in mine if v.after == after]
                rows[kind][f"{context}_{name}"] = {"right": round(share_right(part), 4), "words": len(part)}
    return rows


def table(rows: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    head = ("question", "before, live", "before, frozen", "after, live", "after, frozen", "words after")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for kind, row in rows.items():
        cells = [row[f"{c}_{w}"]["right"] for w in ("before", "after") for c in CONTEXTS]
        shares = ["–" if cell != cell else f"{cell * 100:.1f} %" for cell in cells]
        lines.append("| " + " | ".join([kind, *shares, str(row["live_after"]["words"])]) + " |")
    return "\n".join(lines) + "\n"


def plot(verdicts: dict[str, list[Verdict]], path: Path) -> None:
    """Accuracy over the time since the question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), dpi=120)
    edges = np.arange(0, 8.5, 1.0)
    for context, colour in zip(CONTEXTS, ("#1f6feb", "#d1242f"), strict=True):
        shares = []
        for low, high in pairwise(edges):
            part = [v for v in verdicts[context] if low <= v.lag_s < high]
            shares.append(100 * share_right(part))
        label = (
            "live: looks again before every token"
            if context == "live"
            else "frozen: looks once, at the question"
        )
        axes.plot(edges[:-1] + 0.5, shares, marker="o", color=colour, label=label)
    axes.set(xlabel="seconds since the question", ylabel="state-bearing words right, %", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Read the command line, ask, judge, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="held-out clips: seeds from 1000000 on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=0, help="only the first so many clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=weights_named, default="float32", help="bfloat16, int8, float8")
    parser.add_argument(
        "--any-seed", action="store_true", help="allow clips that are not held out (to look, not to report)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        clips = find_clips(options.clips)[: options.num or None]
        asked = json.loads((options.clips / "questions.json").read_text())
        model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not options.any_seed and any(c.world.seed not in TEST_SEEDS for c in clips):
        parser.error(f"--clips: wanted held-out seeds, from {TEST_SEEDS.start} on")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    examiner = Examiner(model, tokenizer, options.weights)
    verdicts: dict[str, list[Verdict]] = {c: [] for c in CONTEXTS}
    forward_right = forward_all = 0
    said: list[dict[str, Any]] = []
    for number, clip in enumerate(clips):
        rows = asked[clip.path.name]
        answers = examiner.ask(clip, rows)
        said += answer_rows(clip, answers)
        for context, judged in verdicts_of(clip, answers).items():
            verdicts[context] += judged
        right, num = examiner.forward_right(clip, rows)
        forward_right, forward_all = forward_right + right, forward_all + num
        live = share_right(verdicts["live"])
        print(f"\rclip {number + 1}/{len(clips)}  live {live:.3f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = summary(verdicts)
    forward = forward_right / max(forward_all, 1)
    results = {
        "clips": len(clips),
        "weights": options.weights,
        "training_forward": round(forward, 4),
        "table": rows,
    }
    results["live"], results["frozen"] = (round(share_right(verdicts[c]), 4) for c in CONTEXTS)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    wrong = [asdict(v) for v in verdicts["live"] if not v.right]
    (options.out / "wrong.json").write_text(json.dumps(wrong, indent=0) + "\n")
    (options.out / "table.md").write_text(table(rows))
    plot(verdicts, options.out / "accuracy.png")
    print(table(rows))
    print(json.dumps({k: v for k, v in results.items() if k != "table"}))


if __name__ == "__main__":
    main()
