"""Recipes: all numbers of a training run. The defaults are the paper's (sections 3.1, 3.2 and 6.1).

Most recipes change a few fields of another recipe. `--set key=value` changes any field from the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from training.data.training_row import KINDS

Gate = Literal["linear", "tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings of a run, kept in its `recipe.json`. Raises ValueError for a wrong value."""

    name: str
    # Parts of the model that learn, or "all" (`training/optimise/trainable.py`).
    trainable: tuple[str, ...] = ("all",)
    # Switches of the paper's Table 3. None keeps the initial model's value.
    visual_ffn: bool | None = None
    gate: Gate | None = None
    share_attention_parameters: bool | None = None
    kinds: tuple[str, ...] = KINDS  # only rows of these kinds are used
    frozen_view: bool = False  # dense answers see only what the question sees (`data/row_tokenizer.py`)
    # Samples.
    frames_per_second: float = 1.0  # of dense rows
    # Of a dense row: before a question, and again during its answer. Of other videos: evenly spaced.
    max_frames: int = 32
    fifo_frames: int = 0  # newest frames that a token of a dense row sees; 0: as in the model's config
    max_tokens: int = 4096  # of a packed row; a longer sample is a bad row
    max_bad_share: float = 0.05  # the run stops when a larger share of the rows is bad
    max_skipped: int = 20  # the run stops after this many steps in a row whose loss or gradient is not finite
    # Batch sizes, in samples.
    global_batch: int = 768  # of one step, over all workers
    micro_batch: int = 16  # of one forward pass
    # Length of the run.
    steps: int = 0  # 0: `epochs` decides
    epochs: float = 1.0
    seed: int = 1
    # Optimisation.
    peak_lr: float = 2e-5
    peak_muon_lr: float = 0.0  # Muon's rate for the matrices in the layers; 0: AdamW for all weights
    warmup: float = 0.03  # share of the run
    final_lr: float = 0.0  # share of the peak
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    # Hardware.
    checkpoint_activations: bool = True
    compile: bool = False
    flex: bool = False  # on GPUs: FlexAttention, which skips masked blocks; it has no backward pass on CPUs
    hybrid_shard: bool = True  # on several nodes: shard within each; false: over all, in less memory
    bfloat16: bool = True  # on GPUs; weights and gradient sums stay float32
    autocast: bool = False  # on CPUs: matrix products in bfloat16; faster on CPUs with AMX
    # Reports and checkpoints, in steps.
    report_every: int = 10
    save_every: int = 500
    validate_every: int = 500  # with --validation rows
    validation_rows: int = 256  # at most so many of them are used
    # Live-world questions, made during training (`training/live_world/curriculum/micro_batches.py`).
    rows_per_clip: int = 6
    world_share: float = 1.0  # share of their micro-batches, when the run has rows too
    # Their curriculum: first one picture, then the newest of several pictures, then dialogs at the clip's own pace.
    one_picture_steps: int = 450
    picture_steps: int = 1000  # all steps before the dialogs, `one_picture_steps` included
    flip_books: float = (
        0.65  # share of flip books before the dialogs, the rest are captions; later half of it
    )
    flip_book_frames: int = 24
    flip_book_rows: int = 4  # for each clip
    # Weights of auxiliary losses.
    grounding: float = 0.0  # `training/optimise/grounding_loss.py`
    topic: float = 0.0  # `training/optimise/topic_loss.py`

    def __post_init__(self) -> None:
        positive = ("frames_per_second", "max_frames", "max_tokens", "global_batch", "micro_batch", "epochs")
        positive += ("peak_lr", "clip_norm", "report_every", "save_every", "rows_per_clip")
        positive += ("max_skipped", "validate_every", "validation_rows")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted more than 0")
        for name in ("warmup", "final_lr", "max_bad_share", "world_share", "flip_books"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted 0 to 1")
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}"
            )
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds: got {sorted(unknown)}, wanted some of {', '.join(KINDS)}")
        if self.gate not in (None, *get_args(Gate)):
            raise ValueError(f"gate: got {self.gate!r}, wanted linear or tanh")

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one step, over all workers."""
        return self.global_batch // self.micro_batch


def pretrain_stage1() -> Recipe:
    """Section 3.1: only the adapter learns."""
    return Recipe(
        name="pretrain_stage1",
        trainable=("adapter",),
        peak_lr=5e-4,
        global_batch=512,
        steps=5000,
        max_frames=40,
        fifo_frames=40,
    )


def pretrain_stage2() -> Recipe:
    """Section 3.1: the vision encoder, the V-FFNs and the gates learn as well."""
    return replace(
        pretrain_stage1(),
        name="pretrain_stage2",
        trainable=("adapter", "vision", "visual_ffn", "gates"),
        peak_lr=2e-5,
    )


def sft() -> Recipe:
    """Section 3.2: everything learns, for one epoch."""
    return Recipe(name="sft")


def smoke() -> Recipe:
    """A test of the whole pipeline that takes a minute on two cores: dense rows of a few live-world clips."""
    return replace(
        sft(),
        name="smoke",
        steps=12,
        global_batch=8,
        micro_batch=2,
        peak_lr=1e-4,
        frames_per_second=5.0,
        max_frames=60,
        max_tokens=512,
        checkpoint_activations=False,
        report_every=1,
        save_every=4,
        validate_every=4,
        world_share=0.0,
    )


def live_world() -> Recipe:
    """Trains streamchat-tiny on live-world questions that are made during training. The vision encoder is frozen."""
    return replace(
        sft(),
        name="live_world",
        trainable=("adapter", "language", "visual_ffn", "gates"),
        steps=3_400,
        global_batch=8,  # clips
        micro_batch=8,
        peak_lr=1.5e-3,
        peak_muon_lr=3e-3,
        warmup=0.02,
        final_lr=0.02,
        weight_decay=0.05,
        checkpoint_activations=False,
        report_every=50,
        grounding=0.3,
        topic=0.1,
    )


# The paper's Table 3: each changes one thing. Without dense instructions the same dialogs are answered from what their
# question sees.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_visual_ffn": {"visual_ffn": False},
    "tanh_gate": {"gate": "tanh"},
    "no_parameter_reuse": {"share_attention_parameters": False},
    "no_dense_instructions": {"frozen_view": True},
}
# Dense captions are no instructions.
PRETRAINING_ABLATIONS = ABLATIONS | {"no_dense_instructions": {}}
# Live-world questions are made for a moving view.
LIVE_WORLD_ABLATIONS = ABLATIONS | {
    "no_dense_instructions": {"kinds": tuple(kind for kind in KINDS if kind != "dense")}
}
ABLATION_STEPS = 2000  # of stages that are not one epoch


def _with_ablations(recipe: Recipe, ablations: Mapping[str, dict[str, Any]]) -> Iterable[Recipe]:
    yield recipe
    for name, changes in ablations.items():
        steps = ABLATION_STEPS if recipe.steps else 0
        yield replace(recipe, name=f"{recipe.name}_{name}", steps=steps, **changes)


PRETRAINING_RECIPES = {
    r.name: r
    for stage in (pretrain_stage1(), pretrain_stage2())
    for r in _with_ablations(stage, PRETRAINING_ABLATIONS)
}
SFT_RECIPES = {
    r.name: r
    for r in (
        smoke(),
        *_with_ablations(sft(), ABLATIONS),
        *_with_ablations(live_world(), LIVE_WORLD_ABLATIONS),
    )
}


def with_overrides(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `key=value` settings. Raises ValueError for an unknown key or a value of the wrong type."""
    kinds = get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in kinds:
            names = ", ".join(f.name for f in fields(Recipe))
            raise ValueError(f"--set: got {setting!r}, wanted key=value with one of: {names}")
        changes[key] = _value(key, text, str(kinds[key]))
    return replace(recipe, **changes)


def _value(key: str, text: str, kind: str) -> Any:
    if "tuple" in kind:
        return tuple(part for part in text.split(",") if part)
    if text == "none" and "None" in kind:
        return None
    if "bool" in kind:
        if text not in ("true", "false"):
            raise ValueError(f"--set {key}: got {text!r}, wanted true or false")
        return text == "true"
    number = int if kind == "<class 'int'>" else float if kind == "<class 'float'>" else None
    try:
        return number(text) if number else text
    except ValueError:
        raise ValueError(f"--set {key}: got {text!r}, wanted a number") from None
