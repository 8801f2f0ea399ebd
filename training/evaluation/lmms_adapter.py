# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""StreamChat as a model of lmms-eval, which runs the paper's image and video benchmarks (section 5).

    lmms-eval --model streamchat --model_args pretrained=FOLDER,num_frames=40 --tasks mmmu_val,videomme --batch_size 1

lmms-eval 0.7.3 needs an older PyAV than the services, so it runs in its own virtual environment (docs/evaluation.md).
It finds this module by the entry point `lmms_eval.models` in pyproject.toml. Nothing else imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from training.evaluation.offline_answerer import OfflineAnswerer, OfflineQuestion, Visual

MANIFEST = ModelManifest(
    model_id="streamchat", simple_class_path="training.evaluation.lmms_adapter.StreamChatModel"
)
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_MAX_TOKENS = 1024  # for tasks that set no limit


class StreamChatModel(lmms):
    """The class behind `--model streamchat`; `--model_args` are its arguments. `accelerate launch`: a process a GPU."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        num_frames: int = 40,
        batch_size: int | str = 1,
        device: str = "",
        dtype: str = "auto",
        system_prompt: str = "",
        **unknown: Any,
    ) -> None:
        """Raises ValueError for unknown arguments, and FileNotFoundError when there is no such folder."""
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval passes it to every model
        if unknown or dtype not in DTYPES:
            wanted = f"wanted pretrained, num_frames, device, dtype ({', '.join(DTYPES)}) and system_prompt"
            raise ValueError(f"model_args: got {[*unknown] or dtype}, {wanted}")
        accelerator = Accelerator()
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self.accelerator = accelerator
        self.batch_size = int(batch_size)
        self.system = self._resolve_system_prompt(system_prompt)
        self.answerer = OfflineAnswerer(
            Path(pretrained),
            num_frames=int(num_frames),
            batch_size=self.batch_size,
            device=str(accelerator.device) if self._world_size > 1 or not device else device,
            dtype=DTYPES[dtype],
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer requests: (text, options, function for a document's visuals, document number, task, split)."""
        texts: list[str] = []
        for some in _batches(requests, self.batch_size, self.rank):
            questions = [self._question(*request.args) for request in some]
            for request, text in zip(some, self.answerer.answer(questions), strict=True):
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[1]), text)
                texts.append(text)
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Score requests: (text, continuation or a function of the document, visuals, number, task, split).

        Despite the name, lmms-eval expects the loss: it chooses the smallest, and its other models return it so.
        The pair (loss, is greedy) is wrapped because lmms-eval 0.7.3 turns a bare pair into text and then fails.
        """
        results: list[GenerationResult] = []
        for (request,) in _batches(requests, 1, self.rank):
            text, target, visuals, number, task, split = request.args
            continuation = target if isinstance(target, str) else target(self._document(task, split, number))
            question = self._question(text, {}, visuals, number, task, split)
            pair: Any = self.answerer.loss(question, continuation)
            results.append(GenerationResult(text=pair))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer requests of several rounds (OVO-Bench): the task makes each round from the answers so far.

        Arguments are those of `generate_until`, with the function that makes the next round before the number.
        """
        results: list[list[str]] = []
        for (request,) in _batches(requests, 1, self.rank):
            text, options, visuals, next_round, number, task, split = request.args
            answers: list[str] = []
            round_info = None
            for round_idx in count(1):
                question = self._question(text, options, visuals, number, task, split)
                answers += self.answerer.answer([question])
                visuals, text, is_over, outputs, round_info = next_round(
                    self._document(task, split, number),
                    previous_output=answers,
                    round_idx=round_idx,
                    previous_round_info=round_info,
                )
                answers = list(outputs)
                if is_over:
                    break
            results.append(answers)
        return results

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def _question(
        self, text: str, options: Mapping[str, Any], visuals: Any, number: int, task: str, split: str
    ) -> OfflineQuestion:
        shown = visuals(self._document(task, split, number)) if callable(visuals) else visuals
        stop = options.get("until") or ()
        return OfflineQuestion(
            text=text.replace("<image>", "").strip(),
            visuals=tuple(_flatten(shown or ())),
            system=self.system,
            max_tokens=int(options.get("max_new_tokens") or DEFAULT_MAX_TOKENS),
            temperature=float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0,
            top_p=float(options.get("top_p") or 1.0),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )


def _flatten(visuals: Any) -> Iterator[Visual]:
    """Tasks give a picture, a path, or nested lists of them."""
    if isinstance(visuals, list | tuple):
        for one in visuals:
            yield from _flatten(one)
    else:
        yield visuals


def _batches(requests: Sequence[Instance], size: int, rank: int) -> Iterator[list[Instance]]:
    """Requests in their order, with a progress bar on rank 0."""
    with tqdm(total=len(requests), disable=rank != 0, desc="StreamChat answers", file=sys.stderr) as progress:
        for start in range(0, len(requests), size):
            some = list(requests[start : start + size])
            yield some
            progress.update(len(some))
