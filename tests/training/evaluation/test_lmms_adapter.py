"""The model for lmms-eval, with stand-ins for what it imports from lmms-eval (which is not installed here)."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from model.config import PROJECT_ROOT

ADAPTER = "training.evaluation.lmms_adapter"
RED = Image.new("RGB", (120, 80), "red")
OPTIONS = {"max_new_tokens": 3, "until": ["\n\n"], "do_sample": False}


class Model:
    """Stands for `lmms_eval.api.model.lmms`."""

    def __init__(self) -> None:
        self.task_dict = {"colours": {"test": [{"picture": RED}, {"picture": [RED]}]}}
        self.cache_hook = self
        self.cached: list[Any] = []

    @property
    def rank(self) -> int:
        return 0

    def add_partial(self, *entry: Any) -> None:
        self.cached.append(entry)

    def _resolve_system_prompt(self, prompt: str) -> str:
        return prompt


@dataclass
class Instance:
    """Stands for `lmms_eval.api.instance.Instance`."""

    args: tuple[Any, ...]


@dataclass
class GenerationResult:
    """Stands for `lmms_eval.api.instance.GenerationResult`."""

    text: Any


@dataclass
class ModelManifest:
    """Stands for `lmms_eval.models.registry_v2.ModelManifest`."""

    model_id: str
    simple_class_path: str


@pytest.fixture
def entry_point(monkeypatch: pytest.MonkeyPatch) -> EntryPoint:
    """The entry point by which lmms-eval finds the adapter, as pyproject.toml has it."""
    contents: dict[str, dict[str, object]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"Instance": Instance, "GenerationResult": GenerationResult},
        "lmms_eval.api.model": {"lmms": Model},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["lmms_eval.models"]["streamchat"]
    return EntryPoint(name="streamchat", value=value, group="lmms_eval.models")


def load_class(entry_point: EntryPoint) -> Callable[..., Any]:
    """The class that the manifest names, as lmms-eval loads it."""
    module, _, name = entry_point.load().simple_class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_entry_point_names_the_model(entry_point: EntryPoint) -> None:
    manifest = entry_point.load()
    assert manifest.model_id == "streamchat"
    assert load_class(entry_point).__name__ == "StreamChatModel"


def test_wrong_model_args_are_refused(entry_point: EntryPoint, random_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"got \['colour'\], wanted pretrained, num_frames"):
        load_class(entry_point)(str(random_folder), colour="red")
    with pytest.raises(ValueError, match="got float8"):
        load_class(entry_point)(str(random_folder), dtype="float8")


def test_requests_are_answered_and_scored(entry_point: EntryPoint, random_folder: Path) -> None:
    model = load_class(entry_point)(str(random_folder), num_frames=4, batch_size=2, device="cpu")
    picture: Callable[[dict[str, Any]], Any] = lambda document: document["picture"]  # noqa: E731
    where = (picture, 0, "colours", "test")
    texts = model.generate_until(
        [Instance(("<image> Which colour?", OPTIONS, *where)), Instance(("What is it?", OPTIONS, *where))]
    )
    assert len(texts) == 2
    assert [text for _, _, text in model.cached] == texts
    (first,) = model.generate_until([Instance(("Which colour?", OPTIONS, picture, 1, "colours", "test"))])
    assert first == texts[0], "the marker is removed, and nested lists of pictures are flattened"

    (scored,) = model.loglikelihood([Instance(("Which colour?", "red", *where))])
    loss, is_greedy = scored.text
    assert loss > 0
    assert is_greedy in (True, False)

    def next_round(document: Any, *, previous_output: list[str], round_idx: int, **_: Any) -> Any:
        return [RED], "And now?", round_idx == 2, previous_output, None

    request = Instance(("Which colour?", OPTIONS, picture, next_round, 0, "colours", "test"))
    (rounds,) = model.generate_until_multi_round([request])
    assert len(rounds) == 2
    assert rounds[0] == texts[0]
