"""Asking a language model for one instruction and answer about a captioned part of a video (paper section 2.2)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    NotFoundError,
    OpenAI,
    OpenAIError,
    PermissionDeniedError,
)

from training.data.bad_row import BadRow
from training.data.row import Row
from training.dense.dense_reply import Example, captions_text, read_examples, read_reply

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What the model is told, and how it is reached."""

    url: str
    model: str
    key: str = field(default="none", repr=False)
    prompt: str = field(default_factory=lambda: (PROMPTS / "dense_instruction.md").read_text())
    examples: tuple[Example, ...] = field(
        default_factory=lambda: read_examples(PROMPTS / "dense_examples.jsonl")
    )
    num_examples: int = 3  # shown at a time, drawn anew for each request
    temperature: float = 1.0
    max_tokens: int = 200
    timeout_s: float = 60.0
    tries: int = (
        8  # of a request that is answered with 429, 408, 5xx, too late or not at all; the waits double
    )
    together: int = 16

    @property
    def what(self) -> dict[str, Any]:
        """What answers depend on: two runs may share a folder only if it is the same."""
        told = json.dumps([self.prompt, [asdict(example) for example in self.examples]])
        digest = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        return {
            "model": self.model,
            "told": digest,
            "num_examples": self.num_examples,
            "temperature": self.temperature,
        }


class Refused(ValueError):
    """The endpoint will not work for any request: a wrong key, address or model."""


def messages(brief: Brief, row: Row, request: str) -> list[dict[str, str]]:
    """The prompt, a few examples, and the row's captions. The same request gives the same messages."""
    draw = random.Random(request)
    shown = draw.sample(brief.examples, min(brief.num_examples, len(brief.examples)))
    talk = [{"role": "system", "content": brief.prompt}]
    for example in shown:
        answer = {"start_s": example.start_s, "instruction": example.instruction, "answer": example.answer}
        talk.append({"role": "user", "content": captions_text(example.captions)})
        talk.append({"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)})
    captions = [(turn.start_s, turn.end_s, turn.answer) for turn in row.turns]
    return [*talk, {"role": "user", "content": captions_text(captions)}]


class InstructionWriter:
    """Asks an endpoint for many requests at once. Ray Data makes one in each of its workers.

    A request is JSON: {"request": id, "row": a dense row whose answers are captions}. An outcome is JSON too:
    {"request", "reply", "prompt_tokens", "reply_tokens"} and either "turn" or "reason" and "detail"; "again" marks a
    request that got no reply, which a later run repeats; "refused" ends the run.
    """

    def __init__(self, brief: Brief) -> None:
        self.brief = brief
        self.client = OpenAI(
            base_url=brief.url, api_key=brief.key, timeout=brief.timeout_s, max_retries=brief.tries - 1
        )

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Outcomes of a batch {"request": N texts} as {"outcome": N texts}."""
        with ThreadPoolExecutor(self.brief.together) as pool:
            outcomes = pool.map(lambda text: self.write(**json.loads(text)), batch["request"])
            return {"outcome": [json.dumps(outcome, ensure_ascii=False) for outcome in outcomes]}

    def write(self, request: str, row: dict[str, Any]) -> dict[str, Any]:
        """One request's outcome."""
        captions = Row.from_dict(row)
        outcome: dict[str, Any] = {"request": request, "reply": "", "prompt_tokens": 0, "reply_tokens": 0}
        try:
            outcome |= self._ask(captions, request)
        except BadRow as error:
            return outcome | {"reason": error.reason, "detail": error.detail, "again": True}
        except Refused as error:
            return outcome | {"reason": "refused", "detail": str(error), "again": True, "refused": True}
        try:
            return outcome | {"turn": asdict(read_reply(outcome["reply"], captions, self.brief.examples))}
        except BadRow as error:
            return outcome | {"reason": error.reason, "detail": error.detail}

    def _ask(self, row: Row, request: str) -> dict[str, Any]:
        """Raises BadRow when there is no reply, Refused when there will never be one."""
        try:
            reply: Any = self.client.chat.completions.create(
                model=self.brief.model,
                messages=messages(self.brief, row, request),  # type: ignore[arg-type]  # roles and contents
                temperature=self.brief.temperature,
                max_tokens=self.brief.max_tokens,
                seed=random.Random(request).getrandbits(31),
            )
        except (AuthenticationError, PermissionDeniedError, NotFoundError) as error:
            raise Refused(f"{self.brief.url} answers {error.status_code}: {error.message:.300}") from error
        except APITimeoutError as error:
            raise BadRow("endpoint: too late", f"no reply within {self.brief.timeout_s:g} s") from error
        except APIConnectionError as error:
            raise BadRow("endpoint: no connection", f"{self.brief.url}: {error}") from error
        except APIStatusError as error:
            raise BadRow(f"endpoint: {error.status_code}", f"{error.message:.300}") from error
        except (OpenAIError, ValueError) as error:
            raise BadRow("endpoint: nonsense", f"{type(error).__name__}: {error!s:.300}") from error
        return _usage(reply)


def _usage(reply: Any) -> dict[str, Any]:
    """A reply's text and what it cost; whatever else is behind the address may have answered anything."""
    try:
        text = reply.choices[0].message.content
        usage = reply.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    except (AttributeError, IndexError, TypeError) as error:
        raise BadRow("endpoint: nonsense", f"got {reply!r:.300}") from error
    if not isinstance(text, str):
        raise BadRow("endpoint: nonsense", f"content: got {text!r:.80}, wanted a text")
    return {"reply": text, "prompt_tokens": tokens[0], "reply_tokens": tokens[1]}
