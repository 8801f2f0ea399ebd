"""What the chart, the jobs, compose and the image name exists in the code."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from model.config import PROJECT_ROOT
from services.cli import main as cli
from services.local import local_ray
from services.settings import Settings
from tests.helm.rendered_chart import CASES, Object, problems, rendered

DEPLOY = PROJECT_ROOT / "deploy"
KUBECTL = str(Path(sys.executable).with_name("kubectl"))
JOBS = ("pretraining", "sft", "dense-instructions")
KEYS = re.compile(r"^STREAMCHAT_[A-Z_]+$")


def kustomized(folder: str) -> list[Object]:
    """`kubectl kustomize`."""
    done = subprocess.run(
        [KUBECTL, "kustomize", str(DEPLOY / "k8s" / folder)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(done.stdout))


def job(name: str) -> Object:
    (found,) = kustomized(f"training/{name}")
    return found


def bound_deployments() -> set[str]:
    """The names that services/app.py gives its deployments."""
    calls = (
        node
        for node in ast.walk(ast.parse((PROJECT_ROOT / "services/app.py").read_text()))
        if isinstance(node, ast.Call)
    )
    found = (call for call in calls if ast.unparse(call.func) == "serve.deployment")
    return {ast.literal_eval(word.value) for call in found for word in call.keywords if word.arg == "name"}


@pytest.mark.parametrize("case", sorted(CASES))
def test_serve_runs_the_app_and_its_deployments(case: str) -> None:
    config = rendered(case).serve_config
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert (module, attribute) == ("services.app", "app")
    assert importlib.util.find_spec(module)
    assert {one["name"] for one in application["deployments"]} == bound_deployments()


@pytest.mark.parametrize("case", sorted(CASES))
def test_serve_itself_takes_the_configuration(case: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(rendered(case).serve_config)


@pytest.mark.parametrize("case", sorted(CASES))
def test_replicas_find_the_group_they_ask_for(case: str) -> None:
    chart = rendered(case)
    cluster = chart.one("RayService")["spec"]["rayClusterConfig"]
    groups = {group["labels"]["streamchat/group"]: group for group in cluster["workerGroupSpecs"]}
    (application,) = chart.serve_config["applications"]
    for one in application["deployments"]:
        options = one["ray_actor_options"]
        limits = groups[options["label_selector"]["streamchat/group"]]["template"]["spec"]["containers"][0][
            "resources"
        ]
        assert options["num_cpus"] <= float(limits["limits"]["cpu"])
        assert options["num_gpus"] <= float(limits["limits"].get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("case", sorted(CASES))
def test_autoscaling_asks_a_policy_that_is_there(case: str) -> None:
    (application,) = rendered(case).serve_config["applications"]
    scaled = [one["autoscaling_config"] for one in application["deployments"] if "autoscaling_config" in one]
    assert bool(scaled) is bool(CASES[case].get("autoscaling", {}).get("enabled"))
    for policy in (one["policy"] for one in scaled if "policy" in one):
        module, _, name = policy["policy_function"].partition(":")
        getattr(importlib.import_module(module), name)(**policy["policy_kwargs"])


def test_ray_gets_the_flags_that_it_gets_on_one_machine() -> None:
    assert local_ray.MAX_MESSAGE_BYTES == 33554432
    flags = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(local_ray.MAX_MESSAGE_BYTES),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for template in rendered("default").ray_templates().values():
        (container,) = template["spec"]["containers"]
        assert flags.items() <= {one["name"]: one.get("value") for one in container["env"]}.items()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert flags.items() <= compose["services"]["streamchat"]["environment"].items()


def test_the_clusters_ray_is_the_one_that_is_installed() -> None:
    import ray

    versions = [rendered("default").one("RayService")["spec"]["rayClusterConfig"]["rayVersion"]]
    versions += [job(name)["spec"]["rayClusterSpec"]["rayVersion"] for name in JOBS]
    assert set(versions) == {ray.__version__}


@pytest.mark.parametrize("case", sorted(CASES))
def test_ports_are_one_and_the_same_wherever_they_are_named(case: str) -> None:
    chart = rendered(case)
    served = chart.serve_config["http_options"]["port"]
    assert cli.parser().parse_args(["up"]).port == served  # where people find it on one machine
    (port,) = chart.one("RayService")["spec"]["serveService"]["spec"]["ports"]
    assert port == {"name": "serve", "port": served, "targetPort": served}
    for template in chart.ray_templates().values():
        ports = {one["name"]: one["containerPort"] for one in template["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == served
    for route in chart.all("HTTPRoute"):
        assert [one["port"] for rule in route["spec"]["rules"] for one in rule["backendRefs"]] == [served]
    for deployment in chart.all("Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        options = cli.parser().parse_args(container["command"][1:])
        assert container["ports"] == [
            {"name": "publish", "containerPort": int(options.metrics.rpartition(":")[2])}
        ]


@pytest.mark.parametrize("case", sorted(CASES))
def test_monitors_name_ports_of_the_pods_they_select(case: str) -> None:
    chart = rendered(case)
    pods = [
        template["metadata"]["labels"] | {"ray.io/is-ray-node": "yes"}
        for template in chart.pod_templates().values()
    ]
    ports = [
        {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", ())}
        for template in chart.pod_templates().values()
    ]
    for monitor in chart.all("PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        selected = [names for labels, names in zip(pods, ports, strict=True) if wanted <= labels.items()]
        named = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
        assert named <= set[str]().union(*selected)
    assert bool(chart.all("PodMonitor")) is bool(CASES[case].get("metrics", {}))


@pytest.mark.parametrize("case", sorted(CASES))
def test_commands_of_pods_are_commands_of_ours(case: str) -> None:
    for template in rendered(case).pod_templates().values():
        for container in template["spec"]["containers"]:
            for words in streamchat_commands(container):
                options = cli.parser().parse_args(words)
                assert callable(options.run)


def streamchat_commands(container: Object) -> Iterator[list[str]]:
    """Every `streamchat ...` that a container runs, in a shell or not, as its words."""
    command: list[str] = container.get("command", [])
    if command[:1] == ["streamchat"]:
        yield command[1:]
    elif command[:2] == ["bash", "-c"]:
        script, *arguments = container["args"]
        for number, word in enumerate(arguments):
            script = script.replace(f"${number}", shlex.quote(word))
        for found in re.findall(r"streamchat ([^;&\n]+)", script):
            yield shlex.split(found)


def test_files_that_pods_name_are_in_the_tree() -> None:
    for template in rendered("everything").pod_templates().values():
        for container in template["spec"]["containers"]:
            for words in streamchat_commands(container):
                if words[0] == "publish" and not words[1].startswith("$("):
                    assert (PROJECT_ROOT / words[1]).is_file()


@pytest.mark.parametrize("name", JOBS)
def test_training_jobs_fit_kuberays_schema(name: str) -> None:
    assert list(problems(job(name))) == []


@pytest.mark.parametrize("name", JOBS)
def test_training_jobs_run_scripts_that_take_their_options(name: str) -> None:
    for command in job(name)["spec"]["entrypoint"].split("&&"):
        python, script, *words = shlex.split(command)
        assert python == "python"
        wrong = subprocess.run(
            [sys.executable, script, *words, "--no-such-option"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        # Everything else of the command line was taken.
        assert wrong.stderr.rstrip().endswith("unrecognized arguments: --no-such-option")


def test_the_development_clusters_objects_fit_their_schemas() -> None:
    found = kustomized("development")
    assert {one["kind"] for one in found} == {"Namespace", "Service", "StatefulSet"}
    assert [said for one in found for said in problems(one)] == []


def test_the_development_clusters_servers_are_the_charts() -> None:
    theirs = {
        one["metadata"]["name"]: one for one in kustomized("development") if one["kind"] == "StatefulSet"
    }
    for name, one in theirs.items():
        chart = rendered("default").one("StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]
        ours = one["spec"]["template"]["spec"]["containers"][0]
        assert ours["image"] == chart["image"]
        assert {v["name"]: v["value"] for v in ours.get("env", ())} == {
            v["name"]: v["value"] for v in chart["env"] if "value" in v
        }


def variables(tree: Any) -> Iterator[str]:
    """Every name of a setting in a YAML tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from [key] if KEYS.match(str(key)) else variables(value)
    elif isinstance(tree, list):
        for one in tree:
            yield from variables(one)
    elif KEYS.match(str(tree)):
        yield str(tree)


def test_compose_names_settings_that_are_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    names = set(variables(compose))
    assert names
    assert names <= set(Settings().as_environment())
    environment: dict[str, str] = compose["services"]["streamchat"]["environment"]
    with patch.dict(os.environ, environment):
        Settings.from_environment()


def test_compose_runs_commands_of_ours() -> None:
    services: dict[str, Object] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours = [
        service["command"] for service in services.values() if "command" in service and "build" in service
    ]
    told = [words[1:] for words in ours if words[0] == "streamchat"]
    told += [shlex.split(found) for words in ours for found in re.findall(r"streamchat ([^;&]+)", words[-1])]
    assert len(told) == 2
    for words in told:
        assert callable(cli.parser().parse_args(words).run)


def test_compose_serves_the_app() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "services.app:app"


def test_the_image_copies_what_is_there() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    copied: list[str] = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    ignored = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    sources = {source for words in copied for source in words.split()[:-1]}
    assert {source for source in sources if not (PROJECT_ROOT / source).exists()} == set()
    assert {f"!{source}" for source in sources} <= set(ignored)
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    assert {"cpu", "gpu"} <= targets
    assert yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-streamchat"]["build"]["target"] in targets
    assert json.loads(text.rpartition("CMD ")[2].split("\n")[0]) == ["serve", "run", "serve.yaml"]
