"""Measure how many words of a model's answers are right on held-out live-world clips, with and without new frames.

    python training/live_world/write_clips.py --seed 1000000 --num 200 --out held_out
    python training/live_world/accuracy.py --model model/streamchat-tiny --clips held_out --out results

Every question is answered in two contexts: `live` (the model sees the newest frames before each token) and `frozen`
(it sees only the frames at the question). The model decodes freely on the clip's own clock: a frame and a token every
0.2 s. `training/live_world/word_scores.py` has the scoring rules. Writes `results.json`, `answers.jsonl`, `wrong.json`,
`table.md` and `accuracy.png`.
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
from model.checkpoint.weights import WeightFormat, compute_dtype, parse_weight_format, quantise_to
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from training.data.token_row import collate
from training.evaluation.eval_questions import question_name
from training.evaluation.reports import markdown_table
from training.evaluation.timed_answer import TimedAnswer
from training.live_world.answers import SLOTS, reference_answer
from training.live_world.clips import Clip, find_clips, question_of, read_frames
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.questions import KINDS, Question
from training.live_world.word_scores import (
    SENTENCE_ENDS,
    WordScore,
    join_tokens,
    score_words,
    word_accuracy,
)
from training.live_world.world import TEST_SEEDS

CONTEXTS = ("live", "frozen")
STEP_S = 0.2  # time between two decoding steps
FRAME_AGE_S = 0.05  # age of the newest frame at a decoding step
MAX_TOKENS = 40


@dataclass(slots=True)
class EvalDialog:
    """A question to the model in one context, and the answer so far: (text, seen_s) of each token."""

    name: str
    context: str
    question: Question
    ask_s: float
    asked_seen_s: float = 0.0
    tokens: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    ended: bool = False
    done: bool = False


def next_step_s(time_s: float) -> float:
    """Time of the first decoding step at or after a time."""
    return float(np.ceil((time_s - FRAME_AGE_S) / STEP_S - 1e-9)) * STEP_S + FRAME_AGE_S


class AccuracyEvaluator:
    """Asks a model about clips in simulated time."""

    def __init__(
        self, model: StreamChat, tokenizer: PreTrainedTokenizerFast, weights: WeightFormat = "float32"
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._quantise = quantise_to(weights)
        for module in (model.language, model.adapter):  # the services run the encoder apart, in float32
            module.to(compute_dtype(weights, "cpu"))
        self.rate = model.config.frames_per_second
        self.dialog_tokenizer = DialogTokenizer(tokenizer, model.config.fifo_frames)
        self.stop_id = self.dialog_tokenizer.end_id
        self.state_ids = {
            self.dialog_tokenizer.pieces(space + word)[0] for word in SLOTS for space in ("", " ")
        }
        self.end_ids = {self.dialog_tokenizer.pieces(mark)[0] for mark in SENTENCE_ENDS}

    @torch.inference_mode()
    def ask(
        self, clip: Clip, rows: Sequence[dict[str, Any]], contexts: Sequence[str] = CONTEXTS
    ) -> list[EvalDialog]:
        """Answer all questions of a clip in all contexts, as one batch of dialogs."""
        times, pictures = read_frames(clip.path, self.rate, self.model.config.vision.image_size)
        features = self.model.vision(torch.from_numpy(pictures))
        with torch.inference_mode(False):
            # An engine with quantised weights changes its model.
            model = copy.deepcopy(self.model) if self._quantise else self.model
            engine = Engine(model, max_dialogs=len(rows) * len(contexts), quantise=self._quantise)
        engine.add_camera("clip")
        dialogs = [
            EvalDialog(f"{i}-{c}", c, question_of(row), next_step_s(row["ask_s"]))
            for i, row in enumerate(rows)
            for c in contexts
        ]
        num_seen = 0
        for step in range(int(clip.world.duration_s / STEP_S)):
            now_s = step * STEP_S + FRAME_AGE_S
            while num_seen < len(times) and times[num_seen] <= now_s:
                engine.add_frame("clip", str(num_seen), float(times[num_seen]), features[num_seen])
                num_seen += 1
            newest_s = float(times[num_seen - 1])
            for dialog in dialogs:
                if abs(dialog.ask_s - now_s) < 1e-6:
                    dialog.asked_seen_s = newest_s
                    self._open(engine, dialog)
            self._step(engine, [d for d in dialogs if d.ask_s <= now_s + 1e-6 and not d.done], newest_s)
        return dialogs

    def _open(self, engine: Engine, dialog: EvalDialog) -> None:
        prompt = self.dialog_tokenizer.prompt((dialog.question.instruction,))
        options = DialogOptions(
            visual_context="frozen" if dialog.context == "frozen" else "live",
            max_tokens=MAX_TOKENS,
            stop_ids=frozenset({self.stop_id}),
        )
        engine.open_dialog(dialog.name, "clip", prompt, options)

    def _step(self, engine: Engine, dialogs: Sequence[EvalDialog], newest_s: float) -> None:
        """Decode one token of each dialog. Frozen answers get the time of the newest frame too: they are spoken now."""
        if not dialogs:
            return
        by_name = {d.name: d for d in dialogs}
        for generated in engine.step(list(by_name)):
            dialog = by_name[generated.dialog_id]
            dialog.ended = generated.token_id == self.stop_id
            dialog.done = generated.finish_reason is not None
            if not dialog.ended:
                dialog.tokens.append((str(self.tokenizer.decode([generated.token_id])), newest_s))

    @torch.inference_mode()
    def forward_accuracy(self, clip: Clip, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """How many state-bearing words of the right answers the training forward predicts, and how many there are.

        The other words of a sentence decide what it states. So once one of them is predicted wrongly, the state-bearing
        words after it in the sentence count as wrong too, as in a spoken answer.
        """
        times, pictures = read_frames(clip.path, self.rate, self.model.config.vision.image_size)
        features = self.model.vision(torch.from_numpy(pictures))
        dialog_rows = []
        for row in rows:
            ask_s = next_step_s(row["ask_s"])
            seen = lambda time_s: float(times[np.searchsorted(times, time_s + 1e-9, side="right") - 1])  # noqa: E731
            right = reference_answer(
                question_of(row),
                clip.world,
                ask_s,
                1 / STEP_S,
                MAX_TOKENS,
                seen,
                self.dialog_tokenizer.num_pieces,
            )
            dialog_rows.append(self.dialog_tokenizer.row(row["instruction"], right, times))
        batch = collate(dialog_rows, [0] * len(dialog_rows), 0)
        tensors = (batch.token_ids, batch.text_index, batch.frames_of_row, batch.frame_index, batch.visible)
        ids, index, frames_of_row, frame_index, visible = (torch.from_numpy(t) for t in tensors)
        logits = self.model(ids, index, features, frames_of_row, frame_index, visible)
        predicted, counts = logits[:, :-1].argmax(-1), torch.from_numpy(batch.loss_mask)[:, :-1]
        pairs = [self.count_right(p[c], w[c]) for p, w, c in zip(predicted, ids[:, 1:], counts, strict=True)]
        return sum(right for right, _ in pairs), sum(num for _, num in pairs)

    def count_right(self, predicted: Tensor, wanted: Tensor) -> tuple[int, int]:
        """Right state-bearing tokens of one answer [T], and the number of state-bearing tokens."""
        right = num = 0
        same_sentence = True  # the words so far leave the sentence's meaning as it should be
        for said, token in zip(predicted.tolist(), wanted.tolist(), strict=True):
            if token in self.state_ids:
                right, num = right + (same_sentence and said == token), num + 1
            elif token in self.end_ids:
                same_sentence = True
            else:
                same_sentence = same_sentence and said == token
        return right, num


def score_dialogs(clip: Clip, dialogs: Sequence[EvalDialog]) -> dict[str, list[WordScore]]:
    """Scored words by context."""
    scores: dict[str, list[WordScore]] = {c: [] for c in CONTEXTS}
    for dialog in dialogs:
        words = join_tokens(dialog.tokens)
        scores[dialog.context] += score_words(
            dialog.question, clip.world, dialog.asked_seen_s, words, dialog.ended
        )
    return scores


def answer_rows(clip: Clip, dialogs: Sequence[EvalDialog]) -> Iterator[dict[str, Any]]:
    """Rows of `answers.jsonl`; questions have the names of `training/evaluation/eval_questions.py`."""
    for dialog in dialogs:
        number, _, context = dialog.name.partition("-")
        answer = TimedAnswer(
            tokens=tuple(dialog.tokens), asked_seen_s=dialog.asked_seen_s, ended=dialog.ended
        )
        yield {"sample": question_name(clip, int(number)), "candidate": context, **answer.as_dict()}


def summarise(scores: dict[str, list[WordScore]]) -> dict[str, Any]:
    """Accuracy before and after the question: per kind of question and in all, by context."""
    rows: dict[str, Any] = {}
    for kind in (*KINDS, "all"):
        rows[kind] = {}
        for context, all_scores in scores.items():
            of_kind = [s for s in all_scores if kind in ("all", s.kind)]
            for name, after in (("before", False), ("after", True)):
                some = [s for s in of_kind if s.after == after]
                rows[kind][f"{context}_{name}"] = {"right": round(word_accuracy(some), 4), "words": len(some)}
    return rows


def accuracy_table(rows: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    head = ("question", "before, live", "before, frozen", "after, live", "after, frozen", "words after")
    lines: list[list[str]] = []
    for kind, row in rows.items():
        cells = [row[f"{c}_{w}"]["right"] for w in ("before", "after") for c in CONTEXTS]
        shares = ["–" if np.isnan(cell) else f"{cell * 100:.1f} %" for cell in cells]
        lines.append([kind, *shares, str(row["live_after"]["words"])])
    return markdown_table(head, lines)


def plot(scores: dict[str, list[WordScore]], path: Path) -> None:
    """Plot accuracy over the time since the question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), dpi=120)
    edges = np.arange(0, 8.5, 1.0)
    labels = ("live: looks again before every token", "frozen: looks once, at the question")
    for context, colour, label in zip(CONTEXTS, ("#1f6feb", "#d1242f"), labels, strict=True):
        shares = [
            100 * word_accuracy([s for s in scores[context] if low <= s.lag_s < high])
            for low, high in pairwise(edges)
        ]
        axes.plot(edges[:-1] + 0.5, shares, marker="o", color=colour, label=label)
    axes.set(xlabel="seconds since the question", ylabel="state-bearing words right, %", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def measure(
    evaluator: AccuracyEvaluator,
    clips: Sequence[Clip],
    questions: dict[str, list[dict[str, Any]]],
    contexts: Sequence[str] = CONTEXTS,
) -> tuple[dict[str, list[WordScore]], float, list[dict[str, Any]]]:
    """Ask about all clips: scores by context, accuracy of the training forward, and rows of `answers.jsonl`."""
    scores: dict[str, list[WordScore]] = {c: [] for c in CONTEXTS}
    num_right = num_words = 0
    answers: list[dict[str, Any]] = []
    for number, clip in enumerate(clips):
        rows = questions[clip.path.name]
        dialogs = evaluator.ask(clip, rows, contexts)
        answers += answer_rows(clip, dialogs)
        for context, scored in score_dialogs(clip, dialogs).items():
            scores[context] += scored
        right, num = evaluator.forward_accuracy(clip, rows)
        num_right, num_words = num_right + right, num_words + num
        live = word_accuracy(scores["live"])
        print(f"\rclip {number + 1}/{len(clips)}  live {live:.3f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return scores, num_right / max(num_words, 1), answers


def write_results(
    out: Path,
    results: dict[str, Any],
    scores: dict[str, list[WordScore]],
    answers: Sequence[dict[str, Any]],
) -> None:
    """Write and print the results."""
    rows = summarise(scores)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results | {"table": rows}, indent=1) + "\n")
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    wrong = [asdict(s) for s in scores["live"] if not s.right]
    (out / "wrong.json").write_text(json.dumps(wrong, indent=0) + "\n")
    (out / "table.md").write_text(accuracy_table(rows))
    plot(scores, out / "accuracy.png")
    print(accuracy_table(rows))
    print(json.dumps(results))


def main() -> None:
    """Read the command line, ask, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="held-out clips: seeds from 1000000 on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=0, help="number of clips, the first ones (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--weights", type=parse_weight_format, default="float32", help="bfloat16, int8, float8"
    )
    parser.add_argument(
        "--any-seed", action="store_true", help="allow clips that are not held out (to look, not to report)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        clips = find_clips(options.clips)[: options.num or None]
        questions = json.loads((options.clips / "questions.json").read_text())
        model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not options.any_seed and any(c.world.seed not in TEST_SEEDS for c in clips):
        parser.error(f"--clips: wanted held-out seeds, from {TEST_SEEDS.start} on")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    evaluator = AccuracyEvaluator(model, tokenizer, options.weights)
    scores, training_forward, answers = measure(evaluator, clips, questions)
    results = {
        "clips": len(clips),
        "weights": options.weights,
        "training_forward": round(training_forward, 4),
        **{c: round(word_accuracy(scores[c]), 4) for c in CONTEXTS},
    }
    write_results(options.out, results, scores, answers)


if __name__ == "__main__":
    main()
