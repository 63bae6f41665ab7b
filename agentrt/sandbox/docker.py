"""The ``docker`` kind: a hardened container per sandbox, a cgroup of its own per tool call.

The engine must run on this machine: tool calls are found by process number and moved into cgroups
of our own tree, beside the container.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import docker
from anyio import to_thread

from agentrt.errors import (
    BackendUnavailable,
    ConfigError,
    OutputLimitExceeded,
    SandboxError,
    SandboxUnavailable,
)
from agentrt.sandbox.base import SandboxSpec
from agentrt.sandbox.common import Call, CommonSandbox
from agentrt.sandbox.docker_api import (
    USER,
    WORK,
    connect,
    container_config,
    engine_errors,
    labels_for,
    remove_container,
    remove_containers,
)
from agentrt.sandbox.docker_exec import start_exec
from agentrt.sandbox.host import Host
from agentrt.sandbox.provider import PROBE_LIMITS, CommonProvider, fill
from agentrt.sandbox.state import RunState
from agentrt.sandbox.supervise import Group, ToolProcess
from agentrt.sandbox.trees import remove_tree

__all__ = ["DockerProvider", "DockerSandbox", "remove_containers"]

IS_DIRECTORY, NOT_FOUND, REFUSED = 71, 72, 73
READ = f"""\
[ -d "$1" ] && exit {IS_DIRECTORY}
[ -e "$1" ] || exit {NOT_FOUND}
[ -f "$1" ] && [ -r "$1" ] || exit {REFUSED}
exec cat -- "$1"
"""
WRITE = f"""\
[ -d "$1" ] && exit {IS_DIRECTORY}
if [ -e "$1" ]; then [ -f "$1" ] || exit {REFUSED}; fi
mkdir -p -- "${{1%/*}}/" && cat > "$1" || exit {REFUSED}
"""
FILE_SECONDS = 300.0
NEEDS_CGROUPS = "the docker kind moves tool calls into cgroups, and none can be made here"
RUN_AS_ROOT = "Run agentrt as root on the machine of the engine."


class DockerSandbox(CommonSandbox):
    """A container that waits; tool calls are execs in it."""

    kind = "docker"

    def __init__(
        self, sandbox_id: str, spec: SandboxSpec, host: Host, api: docker.APIClient, container: str
    ) -> None:
        super().__init__(sandbox_id, WORK, spec, host)
        self._api = api
        self._container = container

    async def _start(self, call: Call, group: Group) -> ToolProcess:
        return await start_exec(self._api, self._container, call, group)

    async def read_file(self, path: str, *, limit: int = 100 << 20) -> bytes:
        """Return a file's content, read as the container's user; see ``Sandbox.read_file``."""
        place = self._place(path)
        done = await self.exec(
            ["/bin/sh", "-c", READ, "read", place], timeout=FILE_SECONDS, output_cap=limit
        )
        if done.stdout_truncated:
            raise OutputLimitExceeded(
                f"{path} is larger than {limit} bytes.",
                remedy="Raise the limit, or read a part of it with a command.",
            )
        _raise_for_file(done.exit_code, path)
        return done.check().stdout

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file as the container's user; see ``Sandbox.write_file``."""
        place = self._place(path)
        command = ["/bin/sh", "-c", WRITE, "write", place]
        done = await self.exec(command, timeout=FILE_SECONDS, stdin=data)
        _raise_for_file(done.exit_code, path)
        done.check()

    def _place(self, path: str) -> str:
        self._check_open()
        if not path or "\0" in path:
            raise FileNotFoundError(2, "not a path", path)
        return path if path.startswith("/") else f"{WORK}/{path}"

    async def _remove(self) -> None:
        def remove() -> None:
            try:
                remove_container(self._api, self._container)
            finally:
                remove_tree(self._host.directory(self.sandbox_id))
                self._host.tree.drop_sandbox(self.sandbox_id)

        await to_thread.run_sync(remove)


def _raise_for_file(code: int | None, path: str) -> None:
    if code == IS_DIRECTORY:
        raise IsADirectoryError(21, "is a directory", path)
    if code == NOT_FOUND:
        raise FileNotFoundError(2, "no such file", path)
    if code == REFUSED:
        raise PermissionError(13, "not readable or writable as a regular file", path)


class DockerProvider(CommonProvider):
    """Makes ``docker`` sandboxes. ``image`` is for specs that name none, and for the probe."""

    kind = "docker"
    confines = ("filesystem", "network")

    def __init__(self, state: RunState | None = None, *, image: str | None = None) -> None:
        super().__init__(state)
        self._image = image
        self._api: docker.APIClient | None = None
        self._cgroup_driver = ""

    def _probe_spec(self) -> SandboxSpec:
        return SandboxSpec(image=self._image, limits=PROBE_LIMITS)

    async def _obstacle(self) -> tuple[str, str] | None:
        if self._image is None:
            return "no image named", "Name one with --image."
        try:
            await to_thread.run_sync(self._connected)
        except BackendUnavailable as error:
            return error.message.rstrip("."), error.remedy
        return None

    def _connected(self) -> docker.APIClient:
        if self._api is None:
            api = connect()
            with engine_errors("Asking the engine about itself"):
                self._cgroup_driver = str(api.info().get("CgroupDriver", ""))
            self._api = api
        return self._api

    async def _make(self, spec: SandboxSpec, host: Host) -> DockerSandbox:
        image = spec.image or self._image
        if image is None:
            raise ConfigError("The docker kind needs an image.", remedy="Name one with --image.")
        if not host.tree.branches:
            raise SandboxUnavailable(f"{NEEDS_CGROUPS}.", remedy=RUN_AS_ROOT)
        api = await to_thread.run_sync(self._connected)
        await to_thread.run_sync(lambda: host.state.note(docker=True))
        sandbox_id = host.sandbox_id()
        await fill(spec, host, sandbox_id)
        # A thread is never abandoned, so a cancellation waits until there is something to close.
        return await to_thread.run_sync(lambda: self._container(api, spec, image, host, sandbox_id))

    def _container(
        self, api: docker.APIClient, spec: SandboxSpec, image: str, host: Host, sandbox_id: str
    ) -> DockerSandbox:
        top = host.directory(sandbox_id)
        labels = labels_for(host.state.run_id, host.state.record.owner, sandbox_id, spec.labels)
        # A systemd engine wants a slice as parent; its containers then lie where it puts them.
        under = f"/agentrt/{host.state.run_id}/{host.place(spec, sandbox_id)}"
        parent = under if self._cgroup_driver == "cgroupfs" else None
        config = container_config(spec, image, top / "work", labels, parent)
        host_config = config.pop("host")
        container: str | None = None
        try:
            _give(top / "work")
            with engine_errors("Making a container"):
                made = api.create_container(
                    **config, host_config=api.create_host_config(**host_config)
                )
                container = str(made["Id"])
                api.start(container)
        except BaseException:
            if container is not None:
                with contextlib.suppress(SandboxError, BackendUnavailable):
                    remove_container(api, container)
            remove_tree(top)
            raise
        return DockerSandbox(sandbox_id, spec, host, api, container)

    async def close(self) -> None:
        """Remove every container made here, then as for every kind. Idempotent."""
        await super().close()
        if self._api is not None:
            self._api.close()
            self._api = None


def _give(directory: Path) -> None:
    """Make the container's user the owner of the work directory. Follows no link.

    Raises:
        SandboxUnavailable: we may not.
    """
    uid, gid = (int(part) for part in USER.split(":"))
    try:
        for inner, directories, files in os.walk(directory):
            for name in (".", *directories, *files):
                os.chown(Path(inner) / name, uid, gid, follow_symlinks=False)
    except PermissionError as error:
        raise SandboxUnavailable(
            f"Cannot hand {directory} to the container's user.", remedy=RUN_AS_ROOT
        ) from error
