"""What the rendered RayService would start is started here: its Serve configuration and its variables on a local Ray.

Kafka and Redis want passwords and speak TLS. Only addresses, ports and the folder of the Secrets are this machine's.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from model.config import PROJECT_ROOT
from services.local.embedded_servers import HOST, free_port
from services.processes.child_processes import end_process, spawn
from services.processes.polling import wait_until
from tests.helm.cluster import PATIENCE_S, cluster
from tests.helm.rendered_chart import CASES, Object, Rendered, render
from tests.live.clients.live_stack import camera_part, question_about, tokens_of
from tests.secured_servers import SecuredServers
from tests.services.h264 import clip_file

SECRETS = "/etc/streamchat/"  # where pods have the folders of their Secrets
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True, slots=True)
class Service:
    """The running service, and what its pods would have."""

    url: str
    chart: Rendered
    folder: Path

    @property
    def key(self) -> str:
        return self.chart.one("Secret", "streamchat-keys")["stringData"]["test"]

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)

    def environment(self, container: Object) -> dict[str, str]:
        return here(self.chart.environment(container), self.folder)

    def spawn(self, container: Object, words: list[str]) -> subprocess.Popen[bytes]:
        """Run a pod's command with its variables, in the image's working folder, which is the tree's root."""
        path = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT_ROOT)}
        environment = self.environment(container) | path
        command = ["/usr/bin/env", *words]
        return spawn(command, environment=environment, folder=PROJECT_ROOT, stdout=subprocess.PIPE)


def here(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The variables of a pod, with the folder of its Secrets on this machine."""
    return {name: text.replace(SECRETS, f"{folder}/") for name, text in environment.items()}


@pytest.fixture(scope="module")
def service(secured: SecuredServers) -> Iterator[Service]:
    chart = rendered_for(secured)
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp")))
        lay_out_secrets(chart, secured, folder)
        lay_out_command(folder)
        template = chart.ray_templates()["cpu"]["spec"]["containers"][0]
        group = chart.one("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        environment = here(chart.environment(template), folder)
        cpus = float(template["resources"]["limits"]["cpu"])
        config = copy.deepcopy(chart.serve_config)
        port = free_port()
        assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
        config["http_options"] = {"host": HOST, "port": port}
        started = cluster(folder / "ray", environment, cpus=cpus, labels=group["labels"], serve_config=config)
        ending.enter_context(started)
        url = f"http://{HOST}:{port}"
        assert wait_until(lambda: answers(f"{url}/readyz"), PATIENCE_S, every_s=0.5)
        yield Service(url, chart, folder)


def rendered_for(secured: SecuredServers) -> Rendered:
    """The chart for servers elsewhere, as they are here. The Secrets that people bring are made up."""
    values = copy.deepcopy(CASES["external"])
    values["settings"] |= {
        "kafka_bootstrap_servers": secured.kafka,
        "kafka_username": secured.username,
        "redis_url": secured.redis_url,
        "redis_username": secured.username,
    }
    values["publisher"]["secretSettings"] = {}
    values["cameras"] = [{"id": "front-door", "secret": "front-door-camera"}]
    chart = render(values)
    theirs: list[Object] = [
        {
            "kind": "Secret",
            "metadata": {"name": "kafka-users"},
            "stringData": {"frame-fifo": secured.password},
        },
        {
            "kind": "Secret",
            "metadata": {"name": "redis-users"},
            "stringData": {"streamchat": secured.password},
        },
    ]
    return Rendered((*chart.objects, *theirs))


def lay_out_secrets(chart: Rendered, secured: SecuredServers, folder: Path) -> None:
    """The files of the Secrets, as pods would find them."""
    keys = chart.one("Secret", "streamchat-keys")["stringData"]["keys.json"]
    authority = secured.authority.read_text()
    for name, text in {"keys/keys.json": keys, "kafka/ca.crt": authority, "redis/ca.crt": authority}.items():
        path = folder / name
        path.parent.mkdir()
        path.write_text(text)
    (folder / "ray").mkdir()


def lay_out_command(folder: Path) -> None:
    """`streamchat`, as the image has it, of this very tree."""
    command = folder / "bin" / "streamchat"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m services.cli.main "$@"\n')
    command.chmod(0o755)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_helm_test_gets_its_answer(service: Service) -> None:
    (container,) = service.chart.one("Pod", "streamchat-question")["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    assert "http://streamchat:8000" in words
    words[words.index("http://streamchat:8000")] = service.url
    words[-1] = str(round(PATIENCE_S))
    asked = service.spawn(container, words)
    try:
        said, _ = asked.communicate(timeout=PATIENCE_S + 60)
    finally:
        end_process(asked)
    assert asked.returncode == 0, said.decode()
    assert len(said.decode().split()) > 3


def test_a_published_camera_is_talked_about(service: Service, tmp_path: Path) -> None:
    deployment = service.chart.one("Deployment", "streamchat-camera-front-door")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    told = copy.deepcopy(container)
    told["env"] = [one for one in told["env"] if one["name"] != "CAMERA_URL"]
    words = [word.replace("0.0.0.0:9400", f"{HOST}:{free_port()}") for word in container["command"]]
    # In a pod Kubernetes puts the URL of the Secret there, and the camera films for ever.
    words[words.index("$(CAMERA_URL)")] = str(clip_file(tmp_path, num_frames=150, size=(320, 240)))
    camera = service.spawn(told, [*words, "--loop"])
    try:
        client = service.client(service.key)
        assert wait_until(lambda: "front-door" in live_cameras(service), PATIENCE_S, every_s=0.5)
        stream = client.chat.completions.create(
            model="streamchat-tiny",
            stream=True,
            messages=question_about(camera_part("front-door")),
            max_completion_tokens=12,
        )
        tokens = [token for chunk in stream for token in tokens_of(chunk)]
        assert tokens
        assert all(token["frame_id"] for token in tokens)
    finally:
        end_process(camera, patience_s=10.0)
        assert camera.stdout is not None
        camera.stdout.close()


def live_cameras(service: Service) -> set[str]:
    listed: Any = httpx.get(
        f"{service.url}/v1/cameras",
        headers={"Authorization": f"Bearer {service.key}"},
        timeout=PATIENCE_S,
        trust_env=False,
    ).json()
    return {camera["id"] for camera in listed["data"] if camera["state"] == "live"}


@pytest.mark.parametrize("key", ["none", "sc_00000000_" + 64 * "0"])
def test_without_the_key_nobody_is_let_in(service: Service, key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        service.client(key).models.list()


def test_workers_of_the_service_are_ready_by_their_probe(service: Service) -> None:
    (container,) = service.chart.ray_templates()["cpu"]["spec"]["containers"]
    assert answers(f"{service.url}{container['readinessProbe']['httpGet']['path']}")
