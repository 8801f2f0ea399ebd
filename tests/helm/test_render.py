"""The chart renders with Helm's own engine, and Kubernetes would take every object of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from helm_python import HelmError, lint

from tests.helm.rendered_chart import CASES, CHART, RELEASE, Rendered, dry_install, problems, render, rendered

OURS = {"default", "ci", "external", "everything", "production"}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def chart(case: str) -> Rendered:
    return rendered(case)


def test_the_cases_are_there() -> None:
    assert set(CASES) == OURS


def test_helm_finds_nothing_wrong(case: str) -> None:
    report = lint(CHART, CASES[case], strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


def test_helm_would_install_it(case: str) -> None:
    assert "kind: RayService" in dry_install(CASES[case])


def test_every_object_fits_the_schema_of_its_kind(chart: Rendered) -> None:
    wrong = [(one["kind"], one["metadata"]["name"], said) for one in chart.objects for said in problems(one)]
    assert wrong == []


@pytest.mark.parametrize(
    "kind", ["RayService", "StatefulSet", "NetworkPolicy", "Secret", "PodDisruptionBudget"]
)
def test_those_schemas_refuse_a_typo(kind: str) -> None:
    one = copy.deepcopy(rendered("everything").all(kind)[0])
    one["spec" if "spec" in one else "stringData"]["speling"] = {"a": 1}
    assert list(problems(one))


def test_a_typo_deep_in_a_pod_of_ray_is_refused() -> None:
    one = copy.deepcopy(rendered("default").one("RayService"))
    one["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "readinesProbe"
    ] = {}
    assert ["readinesProbe" in said for said in problems(one)] == [True]


def test_no_two_objects_have_one_name(chart: Rendered) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in chart.objects]
    assert len(names) == len(set(names))


def test_pods_run_restricted(chart: Rendered) -> None:
    for name, template in chart.pod_templates().items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod.get("automountServiceAccountToken") is (name == "ray-head"), name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"], name
            assert not security["allowPrivilegeEscalation"], name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"]["cpu"], name


def test_no_service_of_the_namespace_becomes_a_variable(chart: Rendered) -> None:
    # With a release called streamchat Kubernetes would add STREAMCHAT_KAFKA_PORT and the like, which the services
    # refuse as unknown settings, and KAFKA_PORT, which the image of Kafka takes for one of its own.
    assert {template["spec"].get("enableServiceLinks") for template in chart.pod_templates().values()} == {
        False
    }


def test_pods_that_serve_have_probes(chart: Rendered) -> None:
    for name, template in chart.pod_templates().items():
        labels = template["metadata"]["labels"]
        if labels["app.kubernetes.io/component"] in ("camera", "test"):
            continue
        for container in template["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), name


def test_pods_of_a_group_spread(chart: Rendered) -> None:
    for name, template in chart.ray_templates().items():
        for spread in template["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), (
                name
            )


def test_each_group_of_workers_has_a_disruption_budget(chart: Rendered) -> None:
    budgets = [budget["spec"]["selector"]["matchLabels"] for budget in chart.all("PodDisruptionBudget")]
    groups = {name: template["metadata"]["labels"] for name, template in chart.ray_templates().items()}
    del groups["head"]
    assert [
        [name for name, labels in groups.items() if budget.items() <= labels.items()] for budget in budgets
    ] == [[name] for name in groups]


def test_volumes_and_mounts_match(chart: Rendered) -> None:
    for name, template in chart.pod_templates().items():
        mounted = {m["name"] for c in template["spec"]["containers"] for m in c.get("volumeMounts", ())}
        assert {volume["name"] for volume in template["spec"].get("volumes", ())} <= mounted, name


def test_a_name_that_is_too_long_for_kuberay_is_refused() -> None:
    from helm_python import Chart

    with Chart.load(CHART) as chart, pytest.raises(HelmError, match="wanted 40 at most"):
        chart.render({}, name="x" * 41, namespace="video")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"kafka": {"mode": "external"}}, "settings.kafka_bootstrap_servers"),
        ({"redis": {"mode": "external"}}, "settings.redis_url"),
        ({"kafka": {"mode": "strimzi"}}, "install Strimzi"),
        ({"settings": {"redis_url": "redis://mine:6379/0"}}, "the chart sets it to"),
        ({"settings": {"kafka_bootstrap_servers": "mine:9092"}}, "the chart sets it to"),
        (
            {"secretSettings": {"model": {"name": "a", "key": "b"}}, "settings": {"model": "/m"}},
            "from a Secret",
        ),
        ({"workers": {"cpu": {"min": 5, "max": 4}}}, "workers.cpu.min: got 5, wanted max"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    ],
)
def test_what_could_not_work_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HelmError, match=complaint):
        dry_install(values)


def test_dashboards_and_rules_are_carried_whole() -> None:
    chart = rendered("everything")
    dashboards = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    carried = {
        name: text
        for one in chart.all("ConfigMap")
        if "grafana_dashboard" in one["metadata"]["labels"]
        for name, text in one["data"].items()
    }
    assert {name: text.strip() for name, text in carried.items()} == {
        name: text.strip() for name, text in dashboards.items()
    }
    assert len(chart.all("PrometheusRule")) == len(list((CHART / "rules").glob("*.yaml")))


def test_the_autoscaler_and_fault_tolerance_are_on(chart: Rendered) -> None:
    cluster = chart.one("RayService")["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"]
    frames = chart.one("ConfigMap", f"{RELEASE}-settings")["data"]["STREAMCHAT_REDIS_URL"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] not in frames


def test_gpus_make_groups_of_their_own() -> None:
    chart = render({"settings": {"num_gpus_per_decoder": 1}})
    assert set(chart.ray_templates()) == {"head", "cpu", "gpu-decoder"}
    images = {name: pod["spec"]["containers"][0]["image"] for name, pod in chart.ray_templates().items()}
    assert images == {
        "head": "streamchat:0.1.0",
        "cpu": "streamchat:0.1.0",
        "gpu-decoder": "streamchat:0.1.0-gpu",
    }
