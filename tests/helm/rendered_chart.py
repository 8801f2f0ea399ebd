"""The chart as Helm's own engine renders it, and what Kubernetes' own schemas say of the objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import yaml
from helm_python import Chart, Config

from model.config import PROJECT_ROOT

CHART = PROJECT_ROOT / "helm" / "streamchat"
CRDS = Path(__file__).resolve().parent / "crds"  # the schemas of KubeRay 1.7.0's v1 CRDs
KUBERNETES = "1.37"
RELEASE, NAMESPACE = "streamchat", "video"
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    **{path.stem: yaml.safe_load(path.read_text()) for path in sorted((CHART / "ci").glob("*.yaml"))},
}

# Kinds of other people's operators.
WITHOUT_SCHEMA = {
    "HTTPRoute",
    "PodMonitor",
    "PrometheusRule",
    "Kafka",
    "KafkaNodePool",
    "KafkaTopic",
    "KafkaUser",
}

Object = dict[str, Any]

# It would read its megabytes of schemas anew for each object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects of one installation."""

    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        """Every object of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str = RELEASE) -> Object:
        """The object of that kind and name."""
        (found,) = [found for found in self.all(kind) if found["metadata"]["name"] == name]
        return found

    @property
    def serve_config(self) -> Object:
        """What the RayService tells Ray Serve."""
        return yaml.safe_load(self.one("RayService")["spec"]["serveConfigV2"])

    def ray_templates(self) -> dict[str, Object]:
        """The pod templates of Ray's head and groups, by component."""
        cluster = self.one("RayService")["spec"]["rayClusterConfig"]
        groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
        return {"head": cluster["headGroupSpec"]["template"], **groups}

    def pod_templates(self) -> dict[str, Object]:
        """Every pod that there would be: its metadata and spec, by name."""
        found = {f"ray-{name}": template for name, template in self.ray_templates().items()}
        for kind in ("StatefulSet", "Deployment"):
            found |= {one["metadata"]["name"]: one["spec"]["template"] for one in self.all(kind)}
        return found | {one["metadata"]["name"]: one for one in self.all("Pod")}

    def environment(self, container: Object) -> dict[str, str]:
        """The variables of a container, ConfigMaps and Secrets of this installation looked up."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container["env"]:
            found[variable["name"]] = variable["value"] if "value" in variable else self._secret(variable)
        return found

    def _secret(self, variable: Object) -> str:
        key = variable["valueFrom"]["secretKeyRef"]
        return self.one("Secret", key["name"])["stringData"][key["key"]]


def render(values: Mapping[str, Any]) -> Rendered:
    """Render the chart with Helm's engine. Raises HelmError as an install would."""
    with Chart.load(CHART) as chart:
        texts = chart.render(dict(values), name=RELEASE, namespace=NAMESPACE)
    manifests = (text for path, text in texts.items() if not path.endswith("NOTES.txt"))
    return Rendered(tuple(one for text in manifests for one in yaml.load_all(text, yaml.CSafeLoader) if one))


@cache
def rendered(case: str) -> Rendered:
    """One of the cases that the chart brings along, rendered once."""
    return render(CASES[case])


def dry_install(values: Mapping[str, Any]) -> str:
    """`helm install --dry-run=client`; the manifest. Raises HelmError, whose text says what was wrong."""
    with Config(storage_driver="memory") as config, Chart.load(CHART) as chart:
        release = config.install(chart, RELEASE, dict(values), dry_run="client", namespace=NAMESPACE)
    return release["manifest"]


def problems(one: Object) -> Iterator[str]:
    """What the strict schema of its kind says against an object; kinds without one here are not asked."""
    if one["kind"] in ("RayService", "RayJob"):
        for error in strict_crd(one["kind"]).iter_errors(one):
            yield f"{'/'.join(str(part) for part in error.absolute_path)}: {error.message[:200]}"
    elif one["kind"] not in WITHOUT_SCHEMA:
        try:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield str(error)


@cache
def strict_crd(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's own schema of a kind, which also refuses what it does not name."""
    schema = _strict(json.loads((CRDS / f"{kind.lower()}s.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(part) for key, part in schema.items() if key != "format"}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made
