"""The policies allow the arrows of the picture in the README of the chart, and nothing else.

They are evaluated here as Kubernetes does it: a connection is allowed when the sender's policies let it out and the
receiver's let it in; a pod that no policy selects may do anything.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.helm.rendered_chart import RELEASE, Object, Rendered, render, rendered

RAY = ("head", "cpu", "gpu-decoder", "gpu-encoder")
PORTS = (53, 443, 554, 6379, 6443, 8000, 8265, 9092, 9400, 8080, 10001, 22, 12345)
HERE = {"kubernetes.io/metadata.name": "video"}


class Pod:
    """A pod of this cluster: its labels and its namespace's."""

    def __init__(self, component: str, *, ours: bool = True, namespace: str = "video", **labels: str) -> None:
        self.name = component
        self.namespace = {"kubernetes.io/metadata.name": namespace}
        self.labels = dict(labels)
        if ours:
            self.labels |= {
                "app.kubernetes.io/name": "streamchat",
                "app.kubernetes.io/instance": RELEASE,
                "app.kubernetes.io/component": component,
            }
        if component in RAY:  # KubeRay's own
            self.labels["ray.io/is-ray-node"] = "yes"


def matches(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Object, pod: Pod) -> bool:
    if "ipBlock" in peer:
        return False
    namespace: Object = peer.get("namespaceSelector", {"matchLabels": HERE})
    return matches(namespace, pod.namespace) and matches(peer.get("podSelector", {}), pod.labels)


def allowed(policies: list[Object], pod: Pod, direction: str, other: Pod, port: int) -> bool:
    """Whether the policies of a pod let a connection in or out."""
    side = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    selecting = [
        policy["spec"]
        for policy in policies
        if pod.namespace == HERE
        and direction in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], pod.labels)
    ]
    if not selecting:
        return True
    for rule in (rule for spec in selecting for rule in spec.get(side[0], ())):
        ports = {one["port"] for one in rule.get("ports", ())}
        peers: list[Any] = rule.get(side[1], [])
        if (not ports or port in ports) and (not peers or any(is_peer(peer, other) for peer in peers)):
            return True
    return False


def arrows(chart: Rendered, pods: list[Pod]) -> set[tuple[str, str, int]]:
    """Every connection that is possible: who, to whom, at which port."""
    policies = chart.all("NetworkPolicy")
    return {
        (sender.name, receiver.name, port)
        for sender, receiver, port in product(pods, pods, PORTS)
        if sender is not receiver
        and allowed(policies, sender, "Egress", receiver, port)
        and allowed(policies, receiver, "Ingress", sender, port)
    }


CLUSTER = [
    *(Pod(name) for name in (*RAY, "kafka", "redis", "gcs", "camera", "test")),
    Pod("browser", ours=False),
    Pod("stranger", ours=False, namespace="elsewhere"),
    Pod("prometheus", ours=False, namespace="monitoring"),
    Pod("dns", ours=False, namespace="kube-system"),
    Pod("operator", ours=False, namespace="kuberay", **{"app.kubernetes.io/name": "kuberay-operator"}),
]
OUTSIDE = {"browser", "stranger", "prometheus", "dns", "operator"}
WITH_GPUS = {"settings": {"num_gpus_per_decoder": 1, "num_gpus_per_encoder": 1}}


def test_the_arrows_of_the_picture_and_no_other() -> None:
    found = arrows(render(WITH_GPUS), CLUSTER)
    among_us = {(a, b, p) for a, b, p in found if a not in OUTSIDE and b not in OUTSIDE}
    within_ray = {(a, b, p) for a, b, p in product(RAY, RAY, PORTS) if a != b}
    assert among_us - within_ray == {
        ("camera", "kafka", 9092),
        ("cpu", "kafka", 9092),  # FrameFifo
        ("cpu", "redis", 6379),  # FrameFifo, and the Gateway's pictures
        ("gpu-decoder", "redis", 6379),
        ("head", "gcs", 6379),
        ("test", "kafka", 9092),  # a camera and a client in one
        *(("test", ray, 8000) for ray in RAY),
    }
    assert within_ray <= among_us


def test_what_may_come_in() -> None:
    found = {(a, b, p) for a, b, p in arrows(render(WITH_GPUS), CLUSTER) if a in OUTSIDE and b not in OUTSIDE}
    assert found == {
        *(("browser", ray, 8000) for ray in RAY),
        *(("prometheus", ray, 8080) for ray in RAY),
        ("prometheus", "camera", 9400),
        *(("operator", ray, port) for ray in RAY for port in (8000, 8265)),
    }


def test_what_may_go_out() -> None:
    found = {(a, b, p) for a, b, p in arrows(render(WITH_GPUS), CLUSTER) if a not in OUTSIDE and b in OUTSIDE}
    by_dns = {(name, "dns", 53) for name in (*RAY, "camera", "test")}
    # The API of Kubernetes and cameras are no pods: their ports are open to anywhere unless values say where they are.
    api = {("head", other, port) for other in OUTSIDE for port in (443, 6443)}
    cameras = {("camera", other, 554) for other in OUTSIDE}
    assert found == by_dns | api | cameras


def test_production_names_everything_outside() -> None:
    there = [pod for pod in CLUSTER if pod.name not in ("kafka", "redis", "gcs")]  # they are other people's
    found = {
        (a, b, p) for a, b, p in arrows(rendered("production"), there) if a not in OUTSIDE and b in OUTSIDE
    }
    assert found == {
        *((name, "dns", 53) for name in (*RAY, "camera", "test")),
        *(("camera", other, 554) for other in OUTSIDE),
    }


@pytest.mark.parametrize("kind", ["", "+sentinel"])
def test_sentinels_can_be_asked(kind: str) -> None:
    url = f"redis{kind}://store.example.com/frames/0" if kind else "redis://store.example.com/0"
    policies = render({"redis": {"mode": "external"}, "settings": {"redis_url": url}}).all("NetworkPolicy")
    stranger = next(pod for pod in CLUSTER if pod.name == "stranger")
    out = {port for port in (6379, 26379) if allowed(policies, Pod("cpu"), "Egress", stranger, port)}
    assert out == ({6379, 26379} if kind else {6379})


@pytest.mark.parametrize("port", [6379, 8265, 10001])
def test_nobody_outside_reaches_ray_itself(port: int) -> None:
    found = arrows(rendered("default"), CLUSTER)
    assert {a for a, b, p in found if b in RAY and p == port and a not in RAY} <= {"operator"}


def test_everything_of_ours_is_selected() -> None:
    policies = rendered("everything").all("NetworkPolicy")
    for template in rendered("everything").pod_templates().values():
        pod = Pod(template["metadata"]["labels"]["app.kubernetes.io/component"])
        assert any(matches(policy["spec"]["podSelector"], pod.labels) for policy in policies), pod.name
