"""Which parameters learn (paper, section 3): named parts of the model, and a check that they and no others do."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

COMPONENTS = ("adapter", "vision", "visual_ffn", "gates", "language")


def component_of(name: str) -> str:
    """The part that a parameter of `StreamChat` belongs to."""
    if name.startswith(("adapter.", "vision.")):
        return name.partition(".")[0]
    if ".visual_ffn." in name or ".visual_norm." in name:
        return "visual_ffn"
    return "gates" if name.rpartition(".")[2] in ("gate_cross", "gate_visual") else "language"


def set_trainable(model: nn.Module, parts: Iterable[str]) -> list[str]:
    """Let exactly these parts learn ("all": every one); returns a line for each part that the model has.

    Raises ValueError for a part that there is not, and when nothing would learn.
    """
    chosen = set(COMPONENTS) if "all" in (wanted := set(parts)) else wanted
    if unknown := sorted(chosen - set(COMPONENTS)):
        raise ValueError(
            f"trainable: got {', '.join(unknown)}, wanted all or some of {', '.join(COMPONENTS)}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(component_of(name) in chosen)
    learning = {component_of(n) for n, p in model.named_parameters() if p.requires_grad}
    still = {component_of(n) for n, p in model.named_parameters() if not p.requires_grad}
    assert learning <= chosen, (learning, chosen)
    assert not still & chosen, (still, chosen)
    if not learning:
        raise ValueError(f"trainable: the model has no parameters in {', '.join(sorted(chosen))}")
    return [_line(model, part, part in chosen) for part in COMPONENTS if part in learning | still]


def _line(model: nn.Module, part: str, learns: bool) -> str:
    size = sum(p.numel() for n, p in model.named_parameters() if component_of(n) == part)
    return f"{part:10} {size:>14,} parameters {'learn' if learns else 'stay'}"
