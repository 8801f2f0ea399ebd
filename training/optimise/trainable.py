"""Sets which parts of the model learn (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

COMPONENTS = ("adapter", "vision", "visual_ffn", "gates", "language")


def component_of(name: str) -> str:
    """The component that a parameter of `StreamChat` belongs to."""
    if name.startswith(("adapter.", "vision.")):
        return name.partition(".")[0]
    if ".visual_ffn." in name or ".visual_norm." in name:
        return "visual_ffn"
    return "gates" if name.rpartition(".")[2] in ("gate_cross", "gate_visual") else "language"


def set_trainable(model: nn.Module, components: Iterable[str]) -> list[str]:
    """Let exactly these components learn ("all": every one). Returns one line for each component of the model.

    Raises ValueError for an unknown component, and if no parameter would learn.
    """
    chosen = set(COMPONENTS) if "all" in (wanted := set(components)) else wanted
    if unknown := sorted(chosen - set(COMPONENTS)):
        raise ValueError(
            f"trainable: got {', '.join(unknown)}, wanted all or some of {', '.join(COMPONENTS)}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(component_of(name) in chosen)
    learning = {component_of(n) for n, p in model.named_parameters() if p.requires_grad}
    frozen = {component_of(n) for n, p in model.named_parameters() if not p.requires_grad}
    assert learning <= chosen, (learning, chosen)
    assert not frozen & chosen, (frozen, chosen)
    if not learning:
        raise ValueError(f"trainable: the model has no parameters in {', '.join(sorted(chosen))}")
    return [_line(model, name, name in chosen) for name in COMPONENTS if name in learning | frozen]


def _line(model: nn.Module, component: str, learns: bool) -> str:
    size = sum(p.numel() for n, p in model.named_parameters() if component_of(n) == component)
    return f"{component:10} {size:>14,} parameters {'learn' if learns else 'stay'}"
