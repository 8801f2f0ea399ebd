"""Ask a language model for an instruction and an answer about a captioned part of a video (paper section 2.2)."""

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
from training.data.training_row import TrainingRow
from training.dense.dense_reply import Example, caption_triples, captions_text, read_examples, read_reply

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterConfig:
    """The endpoint, the prompt and the sampling parameters."""

    url: str
    model: str
    key: str = field(default="none", repr=False)
    prompt: str = field(default_factory=lambda: (PROMPTS / "dense_instruction.md").read_text())
    examples: tuple[Example, ...] = field(
        default_factory=lambda: read_examples(PROMPTS / "dense_examples.jsonl")
    )
    num_examples: int = 3  # in each request, sampled anew
    temperature: float = 1.0
    max_tokens: int = 200
    timeout_s: float = 60.0
    tries: int = 8  # of a request that gets 429, 408, 5xx, a time-out or no connection; the delays double
    concurrency: int = 16

    @property
    def identity(self) -> dict[str, Any]:
        """What answers depend on. Two runs can share a folder only if it is the same."""
        prompts = json.dumps([self.prompt, [asdict(example) for example in self.examples]])
        return {
            "model": self.model,
            "prompts": hashlib.blake2b(prompts.encode(), digest_size=8).hexdigest(),
            "num_examples": self.num_examples,
            "temperature": self.temperature,
        }


class EndpointRefused(ValueError):
    """The endpoint refuses every request, for example because of a wrong key, address or model."""


def make_messages(config: WriterConfig, row: TrainingRow, request: str) -> list[dict[str, str]]:
    """The prompt, a few examples, and the row's captions. The same request gives the same messages."""
    rng = random.Random(request)
    examples = rng.sample(config.examples, min(config.num_examples, len(config.examples)))
    messages = [{"role": "system", "content": config.prompt}]
    for example in examples:
        answer = {"start_s": example.start_s, "instruction": example.instruction, "answer": example.answer}
        messages.append({"role": "user", "content": captions_text(example.captions)})
        messages.append({"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)})
    return [*messages, {"role": "user", "content": captions_text(caption_triples(row))}]


class InstructionWriter:
    """Sends many requests to an endpoint at once. Ray Data makes one writer in each of its workers.

    A request is JSON: {"request": id, "row": a dense row whose answers are captions}. An outcome is JSON too:
    {"request", "reply", "prompt_tokens", "reply_tokens"} and either "turn" or "reason" and "detail". "again" marks a
    request without a reply; a later run repeats it. "refused" ends the run.
    """

    def __init__(self, config: WriterConfig) -> None:
        self.config = config
        self.client = OpenAI(
            base_url=config.url, api_key=config.key, timeout=config.timeout_s, max_retries=config.tries - 1
        )

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Outcomes of a batch {"request": N texts} as {"outcome": N texts}."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            outcomes = pool.map(lambda text: self.write(**json.loads(text)), batch["request"])
            return {"outcome": [json.dumps(outcome, ensure_ascii=False) for outcome in outcomes]}

    def write(self, request: str, row: dict[str, Any]) -> dict[str, Any]:
        """One request's outcome."""
        captions = TrainingRow.from_dict(row)
        outcome: dict[str, Any] = {"request": request, "reply": "", "prompt_tokens": 0, "reply_tokens": 0}
        try:
            outcome |= self.ask(make_messages(self.config, captions, request), request)
        except BadRow as error:
            return outcome | {"reason": error.reason, "detail": error.detail, "again": True}
        except EndpointRefused as error:
            return outcome | {"reason": "refused", "detail": str(error), "again": True, "refused": True}
        try:
            return outcome | {"turn": asdict(read_reply(outcome["reply"], captions, self.config.examples))}
        except BadRow as error:
            return outcome | {"reason": error.reason, "detail": error.detail}

    def ask(self, messages: list[dict[str, str]], request: str) -> dict[str, Any]:
        """{"reply", "prompt_tokens", "reply_tokens"}. The same request gets the same seed.

        Raises BadRow when there is no reply, EndpointRefused when no request will ever get one.
        """
        try:
            reply: Any = self.client.chat.completions.create(
                model=self.config.model,
                messages=messages,  # type: ignore[arg-type]  # roles and contents
                temperature=self.config.temperature,
                max_tokens=self.config.max_tokens,
                seed=random.Random(request).getrandbits(31),
            )
        except (AuthenticationError, PermissionDeniedError, NotFoundError) as error:
            raise EndpointRefused(
                f"{self.config.url} answers {error.status_code}: {error.message:.300}"
            ) from error
        except APITimeoutError as error:
            raise BadRow("endpoint: time-out", f"no reply within {self.config.timeout_s:g} s") from error
        except APIConnectionError as error:
            raise BadRow("endpoint: no connection", f"{self.config.url}: {error}") from error
        except APIStatusError as error:
            raise BadRow(f"endpoint: {error.status_code}", f"{error.message:.300}") from error
        except (OpenAIError, ValueError) as error:
            raise BadRow("endpoint: invalid reply", f"{type(error).__name__}: {error!s:.300}") from error
        return _text_and_tokens(reply)


def _text_and_tokens(reply: Any) -> dict[str, Any]:
    """A reply's text and tokens. The reply may be anything, because the URL may be of another kind of server."""
    try:
        text = reply.choices[0].message.content
        usage = reply.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    except (AttributeError, IndexError, TypeError) as error:
        raise BadRow("endpoint: invalid reply", f"got {reply!r:.300}") from error
    if not isinstance(text, str):
        raise BadRow("endpoint: invalid reply", f"content: got {text!r:.80}, wanted a text")
    return {"reply": text, "prompt_tokens": tokens[0], "reply_tokens": tokens[1]}
