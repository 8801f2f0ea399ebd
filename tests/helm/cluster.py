"""A Ray that stands in for the cluster of a RayService or a RayJob: private, on this machine."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import PROJECT_ROOT
from services.local.embedded_servers import HOST, free_port
from services.processes.child_processes import become_subreaper, end_descendants, end_process, spawn

UP = b"up\n"
PATIENCE_S = 600.0  # this machine may be busy
PATIENT = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(round(PATIENCE_S)),
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "10",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where its jobs are submitted, and what opens it."""

    jobs_url: str
    token: str


@contextmanager
def cluster(
    folder: Path,
    environment: Mapping[str, str],
    *,
    cpus: float,
    labels: Mapping[str, str],
    serve_config: Mapping[str, Any] | None = None,
) -> Generator[Cluster]:
    """Start Ray in a process with these variables, and Serve with that configuration, until its replicas run.

    Without a configuration it takes jobs instead. `folder` is empty, and has a short path: sockets lie deep below it.
    """
    port = free_port()
    words = ["--folder", folder, "--cpus", cpus, "--labels", json.dumps(dict(labels))]
    words += ["--serve-config", json.dumps(dict(serve_config))] if serve_config else ["--jobs-port", port]
    plain = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "STREAMCHAT_"))}
    process = spawn(
        [sys.executable, "-m", "tests.helm.cluster", *(str(word) for word in words)],
        environment=plain | PATIENT | dict(environment),
        stdout=subprocess.PIPE,
        folder=PROJECT_ROOT,
        death_signal=signal.SIGTERM,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == UP, "Ray or Serve did not start: what they said is above"
        yield Cluster(f"http://{HOST}:{port}", (folder / "token").read_text())
    finally:
        end_process(process, patience_s=30.0)
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    """Ray's own process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cpus", type=float, required=True)
    parser.add_argument("--labels", type=json.loads, required=True)
    parser.add_argument("--serve-config", type=json.loads)
    parser.add_argument("--jobs-port", type=int)
    options = parser.parse_args()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    become_subreaper()
    parent = os.getppid()
    try:
        signal.signal(signal.SIGTERM, end)
        start_ray(options.folder, options.cpus, options.labels, options.jobs_port)
        signal.signal(signal.SIGTERM, end)  # Ray has put its own in place
        if options.serve_config:
            start_serve(options.serve_config)
        out.write(UP)
        out.flush()
        while os.getppid() == parent:
            time.sleep(0.2)
    except Exception:
        traceback.print_exc()  # here: Ray's own hook would tell it to what has ended, and wait for that
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants(patience_s=10.0)
        os._exit(0)  # so would Ray's exit hooks


def end(number: int, frame: object) -> None:
    """For SIGTERM."""
    raise SystemExit


def start_ray(folder: Path, cpus: float, labels: dict[str, str], jobs_port: int | None) -> None:
    """As `streamchat up` does, but with the processors and the labels of the chart's pod."""
    from services.local import local_ray
    from services.settings import Settings

    local_ray.prepare(folder, Settings.from_environment())
    import ray
    from ray._private import parameter, services

    ray_params: Any = parameter.RayParams
    fill_in = ray_params.__init__

    def any_port(params: Any, *words: Any, **named: Any) -> None:
        """Ray's own gives every node's agent the same port, so only one Ray of a machine could take jobs."""
        fill_in(params, *words, **{"dashboard_agent_listen_port": 0} | named)

    ray_params.__init__ = any_port
    registered = services.get_node

    def get_node(*place: Any) -> Any:
        """As Ray's own, which would give up after half a minute: little on a busy machine."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return registered(*place)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    services.get_node = get_node
    ray.init(
        address="local",
        num_cpus=cpus,  # pyright: ignore[reportArgumentType]
        labels=labels,
        object_store_memory=local_ray.OBJECT_STORE_BYTES,
        include_dashboard=jobs_port is not None,
        dashboard_host=HOST,
        dashboard_port=jobs_port,
        configure_logging=False,
    )


def start_serve(config: dict[str, Any]) -> None:
    """What `serve run CONFIG` does, and Ray's dashboard when KubeRay's operator puts the configuration there."""
    from ray.serve._private import api
    from ray.serve.schema import LoggingConfig, ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    client = api.serve_start(
        http_options=config["http_options"],
        proxy_location=config["proxy_location"],
        global_logging_config=LoggingConfig.model_validate(config["logging_config"]),
    )
    client.deploy_apps(schema)  # its own waiting ends after a minute
    deadline = time.monotonic() + PATIENCE_S
    while {str(one.app_status.status.value) for one in client.list_serve_statuses()} != {"RUNNING"}:
        assert time.monotonic() < deadline, [str(one) for one in client.list_serve_statuses()]
        time.sleep(0.2)
    client.wait_for_proxies_serving(wait_for_applications_running=True)


if __name__ == "__main__":
    main()
