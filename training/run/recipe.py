"""Recipes: what is trained, on what, and how. The paper's numbers are the defaults (sections 3.1, 3.2 and 6.1).

A recipe is a function of another that changes a few fields; `--set key=value` changes any field from the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from training.data.training_row import KINDS

Gate = Literal["linear", "tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Checked when made: ValueError says what was got and what is wanted. Kept in the folder that comes out."""

    name: str
    # What learns: "all", or parts of the model (`training/optimise/trainable.py`).
    trainable: tuple[str, ...] = ("all",)
    # The switches of the paper's Table 3; None: as the model that training starts from has it.
    visual_ffn: bool | None = None
    gate: Gate | None = None
    share_attention_parameters: bool | None = None
    kinds: tuple[str, ...] = KINDS  # of rows that are used
    # Samples.
    frames_per_second: float = 1.0  # of dense rows
    max_frames: int = 32  # of a dense row's window; so many, evenly, of other videos
    fifo_frames: int = 0  # newest frames that a word of a dense row sees; 0: the model's own number
    max_tokens: int = 4096  # of a packed row; a sample that is longer is bad
    max_bad_share: float = 0.05  # of rows that cannot be used, before the run stops
    # The batch: samples of one step, and those that go through the model together.
    global_batch: int = 768
    micro_batch: int = 16
    # The length: steps, or (steps 0) so often over all rows.
    steps: int = 0
    epochs: float = 1.0
    seed: int = 1
    # Optimisation.
    peak_lr: float = 2e-5
    peak_muon_lr: float = 0.0  # of the matrices within the layers, by Muon; 0: all by AdamW
    warmup: float = 0.03  # share of the run
    final_lr: float = 0.0  # share of the peak
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    # The machine.
    checkpoint_activations: bool = True
    compile: bool = False
    flex: bool = (
        False  # on GPUs: FlexAttention, which skips what the staircase hides (on CPUs it cannot go back)
    )
    bfloat16: bool = True  # on GPUs; weights and sums stay float32
    autocast: bool = (
        False  # on CPUs: the language model's products in bfloat16, which pays where the CPU has AMX
    )
    # Reports and checkpoints, in steps.
    report_every: int = 10
    save_every: int = 500
    # The live world's own rows, made while training (`training/live_world/curriculum/micro_batches.py`).
    rows_per_clip: int = 6
    world_share: float = 1.0  # of the parts, where there are Parquet rows too
    # Its curriculum: first one picture, then finding the newest of several, then dialogs at the world's own pace.
    one_picture_steps: int = 450
    picture_steps: int = 1000  # before dialogs, those with one picture included
    flip_books: float = 0.65  # share of those steps, others are captions; half as many go on beside dialogs
    flip_book_frames: int = 24
    flip_book_rows: int = 4  # a clip
    # Losses beside the words' own, with their weights.
    grounding: float = 0.0  # `training/optimise/grounding_loss.py`
    topic: float = 0.0  # `training/optimise/topic_loss.py`

    def __post_init__(self) -> None:
        positive = ("frames_per_second", "max_frames", "max_tokens", "global_batch", "micro_batch", "epochs")
        positive += ("peak_lr", "clip_norm", "report_every", "save_every", "rows_per_clip")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted more than 0")
        for name in ("warmup", "final_lr", "max_bad_share", "world_share", "flip_books"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted 0 to 1")
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is no multiple of micro_batch {self.micro_batch}"
            )
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds: got {sorted(unknown)}, wanted some of {', '.join(KINDS)}")
        if self.gate not in (None, *get_args(Gate)):
            raise ValueError(f"gate: got {self.gate!r}, wanted linear or tanh")

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.global_batch // self.micro_batch


def pretrain_stage1() -> Recipe:
    """Section 3.1: the adapter learns to show frames to a language model that stays as it is."""
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
    """A minute on two cores, through everything that the others use: dense rows of a few live-world clips."""
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
        world_share=0.0,
    )


def live_world() -> Recipe:
    """What trains streamchat-tiny: questions of the live world, made while training; the encoder stays as taught."""
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


ABLATIONS: dict[str, dict[str, Any]] = {  # the paper's Table 3: one thing with_switches in each
    "no_visual_ffn": {"visual_ffn": False},
    "tanh_gate": {"gate": "tanh"},
    "no_parameter_reuse": {"share_attention_parameters": False},
    "no_dense_instructions": {"kinds": tuple(kind for kind in KINDS if kind != "dense")},
}
ABLATION_STEPS = 2000


def _with_ablations(recipe: Recipe) -> Iterable[Recipe]:
    yield recipe
    for name, changes in ABLATIONS.items():
        yield replace(recipe, name=f"{recipe.name}_{name}", steps=ABLATION_STEPS, **changes)


PRETRAINING_RECIPES = {
    r.name: r for stage in (pretrain_stage1(), pretrain_stage2()) for r in _with_ablations(stage)
}
SFT_RECIPES = {r.name: r for r in (smoke(), *_with_ablations(sft()), *_with_ablations(live_world()))}


def with_overrides(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `key=value` settings, each value read as its field's type; ValueError says what is wrong."""
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
