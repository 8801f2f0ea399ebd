"""Make streamchat-tiny's tokenizer: byte-level BPE trained on the live world's sentences, with Qwen's chat template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.live_world.answers import SLOTS, reference_answer
from training.live_world.questions import WORDINGS, sample_question
from training.live_world.world import COLOURS, PLACES, THINGS, make_world

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A word includes its hyphens and its leading space. Punctuation is apart.
WORD = Regex(r" ?[A-Za-z][A-Za-z'-]*| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+")


def corpus() -> Iterator[str]:
    """Sentences with every word of the live world, both at the start and within a line."""
    rng = np.random.default_rng(0)
    for wordings in WORDINGS.values():
        for wording in wordings:
            for thing in THINGS:
                for place in (PLACES[int(rng.integers(len(PLACES)))], "middle"):
                    yield wording.format(
                        thing=thing, place=place, happens=("appears", "leaves")[len(thing) % 2]
                    )
    for word in (*SLOTS, *COLOURS, "user", "assistant", "system"):
        yield from (word, f"a {word}.") * 20
    for index in range(300):
        world = make_world(0, index)
        right = reference_answer(sample_question(rng, world, 3.0), world, 3.0, 4.0, 40)
        yield " ".join(w.text for w in right.words)


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer and save it into a folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORD, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[AddedToken(s, special=True) for s in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))
    return fast
