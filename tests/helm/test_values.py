"""Values: each has its comment, each typo and wrong type is refused, and the settings are the services' own."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from helm_python import HelmError
from pydantic import SecretStr

from model.config import PROJECT_ROOT
from services.settings import PREFIX, Settings
from tests.helm.rendered_chart import CASES, CHART, RELEASE, dry_install, rendered

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
# What an item of each list looks like when it is right: the schema walk breaks one thing of it at a time.
ITEMS: dict[str, Any] = {
    "secretFiles": {"name": "a", "secret": "b"},
    "cameras": {"id": "a", "secret": "b"},
    "parentRefs": {"name": "a"},
}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` stands for."""
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def keys(
    schema: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every key that the schema names, with what it says of it; `0` stands for a list's item."""
    for name, part in resolved(schema).get("properties", {}).items():
        yield (*path, name), resolved(part)
        yield from keys(resolved(part), (*path, name))
    if "items" in resolved(schema):
        yield from keys(resolved(schema)["items"], (*path, "0"))


KEYS = {"/".join(path): schema for path, schema in keys(SCHEMA)}
OBJECTS = {path: schema for path, schema in KEYS.items() if schema.get("additionalProperties") is False}


def nested(path: str, value: Any) -> Any:
    """The values in which only that key is given (and what a list's item needs beside it)."""
    names = path.split("/")
    for name, above in zip(reversed(names), [*reversed(names[:-1]), ""], strict=True):
        value = [value] if name == "0" else {name: value}
        if above == "0" and isinstance(value, dict):
            (owner,) = {names[names.index("0") - 1]}
            value = ITEMS.get(owner, {}) | value
    return value


def refusal(values: Any) -> str:
    with pytest.raises(HelmError) as refused:
        dry_install(values)
    return str(refused.value)


@pytest.mark.parametrize("path", sorted(KEYS))
def test_a_wrong_type_is_refused(path: str) -> None:
    schema = KEYS[path]
    wrong = 7 if schema.get("type") == "object" else {"wrong": "type"}
    assert f"at '/{path}'" in refusal(nested(path, wrong))


@pytest.mark.parametrize("path", ["", *sorted(OBJECTS)])
def test_a_typo_is_refused(path: str) -> None:
    assert "'speling' not allowed" in refusal(nested(f"{path}/speling".lstrip("/"), "x"))


# Not a list's items; and requests and limits may be left open.
NEEDED = sorted(
    path for path in KEYS if path != "global" and not {"0", "requests", "limits"} & set(path.split("/"))
)


@pytest.mark.parametrize("path", NEEDED)
def test_a_key_taken_away_is_refused(path: str) -> None:
    assert refusal(nested(path, None))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"settings": {"max_dialogs": 0}}, "/settings/max_dialogs"),
        ({"settings": {"access": "all"}}, "/settings/access"),
        ({"settings": {"kafka_password": "x"}}, "'kafka_password' not allowed"),
        ({"secretSettings": {"kafka_pasword": {"name": "a", "key": "b"}}}, "'kafka_pasword'"),
        ({"kafka": {"mode": "mine"}}, "/kafka/mode"),
        ({"cameras": [{"id": "Front Door", "secret": "a"}]}, "/cameras/0/id"),
        ({"gcs": {"address": "gcs"}}, "/gcs/address"),
        ({"workers": {"cpu": {"resources": {"limits": {"memory": "8 GB"}}}}}, "/limits/memory"),
        ({"networkPolicy": {"kafkaPorts": [70000]}}, "/networkPolicy/kafkaPorts/0"),
        ({"networkPolicy": {"clients": [{}]}}, "/networkPolicy/clients/0"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], complaint: str) -> None:
    assert complaint in refusal(values)


def test_every_key_of_the_schema_is_in_the_values_and_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    told = {
        line.strip().partition(":")[0]
        for line, above in zip(lines[1:], lines, strict=False)
        if is_comment(above)
    }
    plain = {path for path in KEYS if path != "global" and "0" not in path.split("/")}
    names = {path.rpartition("/")[2] for path in plain if "additionalProperties" not in path}
    inside_resources = {"requests", "limits"}
    assert names - inside_resources - told == set()


def test_every_line_with_a_value_has_a_comment_over_it() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    values = [number for number, line in enumerate(lines) if line.strip() and line.strip()[0] not in "#-"]
    assert [lines[number] for number in values if not is_comment(lines[number - 1])] == []


def is_comment(line: str) -> bool:
    return line.strip().startswith("#") and len(line.strip()) > 3


@pytest.fixture(scope="module")
def mirror() -> ModuleType:
    """deploy/mirror_settings.py."""
    spec = importlib.util.spec_from_file_location(
        "mirror_settings", PROJECT_ROOT / "deploy" / "mirror_settings.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_chart_and_docs_have_the_services_settings(mirror: ModuleType) -> None:
    # When this fails: python deploy/mirror_settings.py
    assert mirror.PAGE.read_text() == mirror.settings_page()
    values = (CHART / "values.yaml").read_text()
    assert mirror.with_settings(values) == values
    assert mirror.schema_with_settings(json.loads(json.dumps(SCHEMA))) == SCHEMA


@pytest.mark.parametrize("case", sorted(CASES))
def test_config_map_and_secrets_are_all_settings_and_no_other(case: str) -> None:
    chart = rendered(case)
    container = chart.ray_templates()["cpu"]["spec"]["containers"][0]
    told = set(chart.one("ConfigMap", f"{RELEASE}-settings")["data"])
    secret = {one["name"] for one in container["env"] if one["name"].startswith(PREFIX)}
    assert told & secret == set()
    kinds = {PREFIX + name.upper(): field.annotation for name, field in Settings.model_fields.items()}
    assert told | secret <= set(kinds)
    assert {name for name, kind in kinds.items() if kind is not SecretStr} <= told | secret


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_services_take_what_the_config_map_says(case: str) -> None:
    chart = rendered(case)
    told: dict[str, str] = chart.one("ConfigMap", f"{RELEASE}-settings")["data"]
    container = chart.ray_templates()["cpu"]["spec"]["containers"][0]
    secrets = {v["name"]: "from-a-secret" for v in container["env"] if v["name"].startswith(PREFIX)}
    with patch.dict(os.environ, told | secrets):
        settings = Settings.from_environment()
    given: dict[str, Any] = CASES[case].get("settings", {})
    assert {name: getattr(settings, name) for name in given} == given


def test_what_is_not_said_is_the_services_default() -> None:
    default = dict(Settings())
    with patch.dict(os.environ, rendered("default").one("ConfigMap", f"{RELEASE}-settings")["data"]):
        told = dict(Settings.from_environment())
    known = {"kafka_bootstrap_servers", "redis_url", "keys_file"}
    assert [name for name in told if name not in known and told[name] != default[name]] == []
