"""How the deployments are bound; nothing is started here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from services import app as app_module
from services.app import build, device_of, model_folder
from services.settings import Settings


def deployments(application: serve.Application) -> Iterator[Any]:
    """A bound deployment and all that it is given, each once."""
    seen: dict[str, Any] = {}

    def walk(node: Any) -> None:
        deployment = vars(node)["_bound_deployment"]
        seen[deployment.name] = deployment
        for argument in deployment.init_args:
            if isinstance(argument, serve.Application):
                walk(argument)

    walk(application)
    return iter(seen.values())


def given(deployment: Any) -> list[str]:
    """The deployments that it gets handles of, in order."""
    parts = [each for each in deployment.init_args if isinstance(each, serve.Application)]
    return [vars(part)["_bound_deployment"].name for part in parts]


def test_four_deployments_and_who_gets_whom(random_folder: Path) -> None:
    settings = Settings(
        model=str(random_folder),
        decoder_replicas=3,
        encoder_replicas=2,
        gateway_replicas=4,
        max_dialogs=5,
        num_gpus_per_decoder=0.5,
    )
    bound = {deployment.name: deployment for deployment in deployments(build(settings))}
    assert {name: given(deployment) for name, deployment in bound.items()} == {
        "Gateway": ["LLMDecoder", "FrameFifo"],
        "LLMDecoder": [],
        "FrameFifo": ["VisionEncoder"],
        "VisionEncoder": [],
    }
    assert {name: deployment.num_replicas for name, deployment in bound.items()} == {
        "Gateway": 4,
        "LLMDecoder": 3,
        "FrameFifo": 1,
        "VisionEncoder": 2,
    }
    assert bound["LLMDecoder"].ray_actor_options["num_gpus"] == 0.5
    assert bound["VisionEncoder"].ray_actor_options["num_gpus"] == 0
    assert all(deployment.init_args[0] == settings for deployment in bound.values())
    assert bound["Gateway"].init_args[1] == "streamchat-tiny"
    assert not ray.is_initialized()


def test_dialogs_are_routed_by_camera_and_never_queue(random_folder: Path) -> None:
    settings = Settings(model=str(random_folder), max_dialogs=5)
    bound = {deployment.name: deployment for deployment in deployments(build(settings))}
    options = vars(bound["LLMDecoder"])["_deployment_config"].request_router_config
    assert options.get_request_router_class() is ConsistentHashRouter
    assert options.request_router_kwargs == {"num_fallback_replicas": 2}
    assert bound["LLMDecoder"].max_ongoing_requests > 5  # what does not fit is told so by the decoder


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no StreamChat folder"):
        build(Settings(model=str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        build(Settings(model=str(tmp_path)))


def test_the_app_is_built_from_the_environment_when_asked_for(
    random_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("STREAMCHAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STREAMCHAT_MODEL", str(random_folder))
    monkeypatch.setenv("STREAMCHAT_DECODER_REPLICAS", "2")
    bound = {deployment.name: deployment for deployment in deployments(app_module.app)}
    assert bound["LLMDecoder"].num_replicas == 2
    with pytest.raises(AttributeError, match="nothing"):
        _ = app_module.nothing


def test_the_model_that_ships_is_the_default() -> None:
    assert model_folder(Settings()).parts[-2:] == ("model", "streamchat-tiny")
    assert model_folder(Settings(model="elsewhere")) == Path("elsewhere")
    assert (device_of(0.0), device_of(0.5)) == ("cpu", "cuda")
