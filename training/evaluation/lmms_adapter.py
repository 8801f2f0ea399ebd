# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""StreamChat as a model of lmms-eval, so that the paper's image and video tables can be run (section 5).

    lmms-eval --model streamchat --model_args pretrained=FOLDER,num_frames=40 --tasks mmmu_val,videomme --batch_size 1

lmms-eval 0.7.3 wants an older PyAV than the services: it has a virtual environment of its own, see docs/benchmarks.md.
It finds us by the entry point `lmms_eval.models` in pyproject.toml. Nothing else imports this file.
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

from training.evaluation.offline_answerer import Asked, OfflineAnswerer, Visual

MANIFEST = ModelManifest(
    model_id="streamchat", simple_class_path="training.evaluation.lmms_adapter.StreamChatModel"
)
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST = 1024  # tokens, where a task does not say


class StreamChatModel(lmms):
    """What `--model streamchat` makes; `--model_args` are the arguments. One process a GPU: `accelerate launch`."""

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
        """Raises ValueError for arguments that it does not know, and FileNotFoundError without the folder."""
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval hands it to every model
        if unknown or dtype not in DTYPES:
            wanted = f"wanted pretrained, num_frames, device, dtype ({', '.join(DTYPES)}) and system_prompt"
            raise ValueError(f"model_args: got {[*unknown] or dtype}, {wanted}")
        accelerator = Accelerator()
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self.accelerator = accelerator
        where = str(accelerator.device) if self._world_size > 1 or not device else device
        self.batch_size = int(batch_size)
        self.system = self._resolve_system_prompt(system_prompt)
        self.answerer = OfflineAnswerer(
            Path(pretrained),
            num_frames=int(num_frames),
            together=self.batch_size,
            device=where,
            dtype=DTYPES[dtype],
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer: arguments are (text, options, visuals of a document, its number, task, split)."""
        texts: list[str] = []
        for some in _chunks(requests, self.batch_size, self.rank):
            asked = [self._asked(*one.args) for one in some]
            for one, text in zip(some, self.answerer.answer(asked), strict=True):
                self.cache_hook.add_partial("generate_until", (one.args[0], one.args[1]), text)
                texts.append(text)
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Arguments are (text, continuation or a function of the document, visuals, number, task, split).

        Despite its name lmms-eval wants the loss, as its other models return it: it takes the choice with the smallest.
        Loss and whether it is the likeliest come wrapped: lmms-eval 0.7.3 makes a text of a bare pair, and then fails.
        """
        found: list[GenerationResult] = []
        for (one,) in _chunks(requests, 1, self.rank):
            text, target, visuals, number, task, split = one.args
            continuation = target if isinstance(target, str) else target(self._document(task, split, number))
            asked = self._asked(text, {}, visuals, number, task, split)
            pair: Any = self.answerer.loss(asked, continuation)
            found.append(GenerationResult(text=pair))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer, hand the task what was said so far, ask what it makes of that, until it has asked all: OVO-Bench.

        Arguments are those of `generate_until`, and before the number what makes the next round of a document.
        """
        results: list[list[str]] = []
        for (one,) in _chunks(requests, 1, self.rank):
            text, options, visuals, next_round, number, task, split = one.args
            said: list[str] = []
            before = None
            for round_idx in count(1):
                said += self.answerer.answer([self._asked(text, options, visuals, number, task, split)])
                visuals, text, is_over, told, before = next_round(
                    self._document(task, split, number),
                    previous_output=said,
                    round_idx=round_idx,
                    previous_round_info=before,
                )
                said = list(told)
                if is_over:
                    break
            results.append(said)
        return results

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def _asked(
        self, text: str, options: Mapping[str, Any], visuals: Any, number: int, task: str, split: str
    ) -> Asked:
        shown = visuals(self._document(task, split, number)) if callable(visuals) else visuals
        until = options.get("until") or ()
        return Asked(
            text=text.replace("<image>", "").strip(),
            visuals=tuple(_flat(shown or ())),
            system=self.system,
            max_tokens=int(options.get("max_new_tokens") or LONGEST),
            temperature=float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0,
            top_p=float(options.get("top_p") or 1.0),
            until=(until,) if isinstance(until, str) else tuple(until),
        )


def _flat(visuals: Any) -> Iterator[Visual]:
    """Tasks give a picture, a path, or lists of them."""
    if isinstance(visuals, list | tuple):
        for one in visuals:
            yield from _flat(one)
    else:
        yield visuals


def _chunks(requests: Sequence[Instance], size: int, rank: int) -> Iterator[list[Instance]]:
    """In their order, with a line of progress."""
    with tqdm(total=len(requests), disable=rank != 0, desc="StreamChat answers", file=sys.stderr) as progress:
        for start in range(0, len(requests), size):
            some = list(requests[start : start + size])
            yield some
            progress.update(len(some))
