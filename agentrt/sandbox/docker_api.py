"""Talking to the Docker engine: the client, what a container is made with, its labels."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import kwargs_from_env
from requests.exceptions import RequestException

from agentrt.errors import BackendUnavailable, ConfigError, SandboxError
from agentrt.sandbox.base import SandboxSpec
from agentrt.sandbox.state import Owner

__all__ = [
    "LABEL_OWNER",
    "LABEL_RUN",
    "START_ENGINE",
    "connect",
    "container_config",
    "engine_errors",
    "labels_for",
    "remove_containers",
]

LABEL_RUN = "agentrt.run"
LABEL_OWNER = "agentrt.owner"
LABEL_SANDBOX = "agentrt.sandbox"
LABEL_CREATED = "agentrt.created"
OUR_LABELS = "agentrt."
START_ENGINE = "Start it (systemctl start docker), or install it (apt-get install docker.io)."

USER = "65534:65534"
WORK = "/work"
TMP_SIZE = "512m"
CONTAINER_MEMORY = 256 << 20
CONTAINER_PIDS = 512
CALL_SECONDS = 60
KNOCK_SECONDS = 5.0
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
POOL = 64

# The main process stops itself: it waits without using CPU and needs nothing but a shell.
IDLE = ["/bin/sh", "-c", "while :; do kill -STOP $$; done"]


def connect(*, timeout: float = CALL_SECONDS) -> docker.APIClient:
    """A client of the engine that ``DOCKER_HOST`` names, else of the local one. Blocking.

    Raises:
        BackendUnavailable: no engine answers.
    """
    try:
        settings: dict[str, Any] = dict(kwargs_from_env())
        _knock(settings.get("base_url") or DEFAULT_SOCKET)
        client = docker.APIClient(
            version="auto", timeout=int(timeout), max_pool_size=POOL, **settings
        )
    except (OSError, DockerException, RequestException) as error:
        raise BackendUnavailable(
            f"No Docker engine answers: {_short(error)}.", remedy=START_ENGINE
        ) from error
    return client


def _knock(url: str) -> None:
    """Connect to a local socket and hang up; raises OSError where nobody listens.

    The client would leave a socket open for each failed attempt.
    """
    place = url.partition("unix://")[2] or url.partition("http+unix://")[2]
    if place:
        with socket.socket(socket.AF_UNIX) as trial:
            trial.settimeout(KNOCK_SECONDS)
            trial.connect("/" + place.lstrip("/"))


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises while ``doing`` something into our errors."""
    try:
        yield
    except ImageNotFound as error:
        raise ConfigError(
            f"{doing}: {_short(error)}.", remedy="Pull or build the image first: docker pull IMAGE"
        ) from error
    except APIError as error:
        said = error.explanation or _short(error)
        raise SandboxError(
            f"{doing}: {said}.", remedy="Look at the engine's log: journalctl -u docker"
        ) from error
    except (DockerException, RequestException) as error:
        raise BackendUnavailable(f"{doing}: {_short(error)}.", remedy=START_ENGINE) from error


def labels_for(
    run_id: str, owner: Owner, sandbox_id: str, labels: Mapping[str, str]
) -> dict[str, str]:
    """The caller's labels and ours, by which a later start knows whose container it is.

    Raises:
        ConfigError: a label of the caller would take the place of one of ours.
    """
    for name in labels:
        if name.startswith(OUR_LABELS):
            raise ConfigError(
                f"The label {name} is reserved.", remedy=f"Do not start labels with {OUR_LABELS}."
            )
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        **labels,
        LABEL_RUN: run_id,
        LABEL_OWNER: owner.text(),
        LABEL_SANDBOX: sandbox_id,
        LABEL_CREATED: created,
    }


def container_config(
    spec: SandboxSpec, image: str, work: Path, labels: Mapping[str, str], cgroup_parent: str | None
) -> dict[str, Any]:
    """Pure: how a container is made. Hardened by default; nothing here can be privileged.

    The container's own limits hold only what starts a tool call: the calls have their own cgroups.
    """
    binds = [f"{work}:{WORK}:rw", *(f"{path}:{path}:ro" for path in spec.readable)]
    host: dict[str, Any] = {
        "network_mode": spec.network,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "init": True,
        "pids_limit": CONTAINER_PIDS,
        "mem_limit": CONTAINER_MEMORY,
        "memswap_limit": CONTAINER_MEMORY,
        "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={TMP_SIZE},mode=1777"},
        "ipc_mode": "private",
        "ulimits": [docker.types.Ulimit(name="core", soft=0, hard=0)],
        "binds": binds,
        "log_config": {"Type": "none", "Config": {}},
    }
    if cgroup_parent is not None:
        host["cgroup_parent"] = cgroup_parent
    return {
        "image": image,
        "entrypoint": IDLE,
        "command": [],
        "user": USER,
        "working_dir": WORK,
        # The engine refuses a host name together with the host's network.
        "hostname": "sandbox" if spec.network == "none" else None,
        "labels": dict(labels),
        "environment": {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"},
        "host": host,
    }


def remove_containers(dead: Callable[[Owner], bool]) -> int:
    """Remove every container, running or not, whose label names a dead owner. Blocking.

    Raises:
        BackendUnavailable: no engine answers.
    """
    client = connect()
    removed = 0
    try:
        with engine_errors("Listing containers"):
            found = client.containers(all=True, filters={"label": [LABEL_RUN]})
        for container in found:
            owner = Owner.parse(container["Labels"].get(LABEL_OWNER, ""))
            if owner is not None and dead(owner):
                removed += remove_container(client, container["Id"])
    finally:
        client.close()
    return removed


def remove_container(client: docker.APIClient, container: str) -> bool:
    """Kill and remove one container and its anonymous volumes; absent already is fine. Blocking.

    Raises:
        SandboxError, BackendUnavailable: the engine refused or does not answer.
    """
    with engine_errors("Removing a container"):
        try:
            client.remove_container(container, force=True, v=True)
        except NotFound:
            return False
    return True
