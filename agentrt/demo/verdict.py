"""The verdict: whether the repository's own tests pass on the tree that an agent left behind.

The tree is taken out of the agent's sandbox, its protected files are replaced by the originals, and
the test command runs on it in a fresh sandbox: what an agent did to the tests, to bytecode caches
or outside its work directory does not count.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

from agentrt.demo.recording import Task
from agentrt.errors import InternalError
from agentrt.sandbox.base import ExecResult, Sandbox

__all__ = ["FinalTree", "Verdict", "final_tree", "judge"]

TREE_CAP = 16 << 20
TEST_TIMEOUT = 60.0

SandboxMaker: TypeAlias = Callable[[], Awaitable[Sandbox]]


@dataclass(frozen=True, slots=True)
class FinalTree:
    """A tar archive to judge, and which protected files the agent had changed or removed."""

    archive: bytes
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``detail`` is one line for people; ``test`` is the test command's result, if it was run."""

    resolved: bool
    detail: str
    test: ExecResult | None = None


def final_tree(archive: bytes, originals: Mapping[str, bytes], protect: Iterable[str]) -> FinalTree:
    """Return the agent's tree with everything under ``protect`` replaced by ``originals``.

    Only plain files, directories and symbolic links are kept, without their owners.

    Raises:
        tarfile.TarError: ``archive`` is not a tar archive.
    """
    protected = tuple(PurePosixPath(name) for name in protect)
    seen: dict[str, bytes] = {}
    rebuilt = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as source,
        tarfile.open(fileobj=rebuilt, mode="w") as target,
    ):
        for member in source:
            path = PurePosixPath(member.name)
            data = source.extractfile(member) if member.isfile() else None
            if any(path.is_relative_to(name) for name in protected):
                seen[path.as_posix()] = data.read() if data else b""
            elif member.isfile() or member.isdir() or member.issym():
                target.addfile(_without_owner(member), data)
        for name, content in originals.items():
            target.addfile(_plain_file(name, len(content)), io.BytesIO(content))
    changed = tuple(name for name, content in originals.items() if seen.get(name) != content)
    return FinalTree(rebuilt.getvalue(), changed)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    return member.replace(uid=0, gid=0, uname="", gname="", deep=False)


def _plain_file(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info


async def judge(task: Task, worked: Sandbox, fresh: SandboxMaker) -> Verdict:
    """Judge the tree in ``worked``; ``fresh`` makes the empty sandbox that the tests run in.

    Raises:
        SandboxError: a sandbox died.
        InternalError: the tree could not be copied for a reason that is not the agent's.
    """
    packed = await worked.exec(
        "tar -cf - --exclude=__pycache__ .", output_cap=TREE_CAP, timeout=TEST_TIMEOUT
    )
    if packed.stdout_truncated:
        return Verdict(False, f"the tree is larger than {TREE_CAP >> 20} MiB")
    try:
        tree = final_tree(packed.stdout, task.originals(), task.protect)
    except tarfile.TarError as error:
        return Verdict(False, f"the tree could not be read: {error}")
    box = await fresh()
    unpacked = await box.exec("tar -xof -", stdin=tree.archive, timeout=TEST_TIMEOUT)
    if not unpacked.ok:
        raise InternalError(f"The final tree could not be unpacked: {unpacked.stderr[-300:]!r}.")
    done = await box.exec(task.test, timeout=TEST_TIMEOUT)
    return Verdict(done.ok, _describe(done, tree.changed), done)


def _describe(done: ExecResult, changed: tuple[str, ...]) -> str:
    if done.ok:
        text = "tests pass"
    elif done.status == "exited":
        text = f"tests fail (exit code {done.exit_code})"
    else:
        text = f"tests ended by {done.status.replace('_', ' ')}"
    if changed:
        text += f"; the agent had changed {', '.join(changed)}, the originals were used"
    return text
