"""Who is running: each run's record on disk, so that the next start can clean up after a dead one.

A record is written before anything that could leak exists, and everything that a run makes is named
after its run id. Judging whether an owner lives is pure; only reading and writing touch the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from agentrt.errors import ConfigError
from agentrt.sandbox.trees import remove_tree

__all__ = [
    "ENV_STATE",
    "ENV_TOOL",
    "Owner",
    "Record",
    "RunState",
    "Verdict",
    "judge",
    "parse_record",
    "read_records",
    "state_directory",
]

ENV_STATE = "AGENTRT_STATE"
ENV_TOOL = "AGENTRT_TOOL"
"""Set in every tool call: ``<run>/<sandbox>/<tool>``, by which a lost process can be found."""
PREFIX = "agentrt-"
RECORD = "owner.json"

Verdict: TypeAlias = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told apart from a later one with the same number.

    ``start`` is its start time in clock ticks since boot, ``boot`` the boot id of the kernel and
    ``pidns`` the inode of its pid namespace: numbers of another namespace mean nothing here.
    """

    pid: int
    start: int
    boot: str
    pidns: int

    @classmethod
    def current(cls, proc: Path = Path("/proc")) -> Self:
        """The calling process."""
        start = start_time(os.getpid(), proc)
        return cls(os.getpid(), start or 0, boot_id(proc), pid_namespace(proc))

    def text(self) -> str:
        """One line for a label: ``pid:start:boot:pidns``."""
        return f"{self.pid}:{self.start}:{self.boot}:{self.pidns}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The owner that ``text`` wrote, or ``None`` for another text."""
        parts = text.split(":")
        if len(parts) != 4 or not all(parts[i].isdigit() for i in (0, 1, 3)):
            return None
        return cls(int(parts[0]), int(parts[1]), parts[2], int(parts[3]))


@dataclass(frozen=True, slots=True)
class Record:
    """What the next start must know to clean up after this run. Paths are absolute."""

    run_id: str
    owner: Owner
    temp: str = ""
    cgroups: tuple[str, ...] = ()
    docker: bool = False


def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's boot id."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()


def pid_namespace(proc: Path = Path("/proc")) -> int:
    """The inode of our pid namespace."""
    return (proc / "self/ns/pid").stat().st_ino


def start_time(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Start time of a process in clock ticks since boot; ``None`` when it is gone or a zombie."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command name may hold spaces and parentheses: count fields after the last one.
    fields = text[text.rfind(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def judge(owner: Owner, *, boot: str, pidns: int, start: int | None) -> Verdict:
    """Whether ``owner`` lives, given this machine and the start time of the process so numbered."""
    if owner.boot != boot:
        return "dead"
    if owner.pidns != pidns:
        return "unknown"
    return "alive" if start == owner.start else "dead"


def parse_record(text: str) -> Record | None:
    """Read a record; ``None`` for anything that is not one."""
    try:
        data: Any = json.loads(text)
        owner = Owner(**{k: data["owner"][k] for k in ("pid", "start", "boot", "pidns")})
        return Record(
            run_id=str(data["run_id"]),
            owner=owner,
            temp=str(data["temp"]),
            cgroups=tuple(map(str, data["cgroups"])),
            docker=bool(data["docker"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def state_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where records live: ``$AGENTRT_STATE``, else the run-time directory of root or the user."""
    values = os.environ if environ is None else environ
    if named := values.get(ENV_STATE):
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/run/agentrt")
    if runtime := values.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "agentrt"
    return Path(tempfile.gettempdir()) / f"agentrt-state-{os.geteuid()}"


def read_records(directory: Path) -> list[Record]:
    """All well-formed records of a state directory that belong to our user."""
    out: list[Record] = []
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            record = parse_record(path.read_text())
            if record is not None and record.run_id == path.stem:
                out.append(record)
    return out


class RunState:
    """The record and the private directory of this run; a context manager that removes both.

    ``temp`` is ``agentrt-<run id>`` in the system's temporary directory, closed to other users. It
    holds a copy of the record, so that it can be cleaned also when the state directory is lost.
    """

    def __init__(self, record: Record, directory: Path) -> None:
        self.record = record
        self.directory = directory
        self.closed = False

    @classmethod
    def open(cls, directory: Path | None = None, *, temp: Path | None = None) -> Self:
        """Register a new run. Blocking.

        Raises:
            ConfigError: the state directory or the temporary directory cannot be written.
        """
        directory = directory or state_directory()
        run_id = "r" + secrets.token_hex(6)
        place = (temp or Path(tempfile.gettempdir())) / f"{PREFIX}{run_id}"
        state = cls(Record(run_id, Owner.current(), temp=str(place)), directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            state._save()
            place.mkdir(mode=0o700)
            (place / RECORD).write_text(json.dumps(asdict(state.record)))
        except OSError as error:
            state.close()
            raise ConfigError(
                f"Cannot write {error.filename}: {error.strerror}.",
                remedy=f"Set {ENV_STATE} and TMPDIR to directories that you can write.",
            ) from error
        return state

    @property
    def run_id(self) -> str:
        """The run's id: the name of everything it makes."""
        return self.record.run_id

    @property
    def temp(self) -> Path:
        """The run's private directory."""
        return Path(self.record.temp)

    @property
    def path(self) -> Path:
        """The record's file."""
        return self.directory / f"{self.run_id}.json"

    def note(self, *, cgroups: tuple[Path, ...] | None = None, docker: bool | None = None) -> None:
        """Add to the record what is about to be made. Blocking."""
        if cgroups is not None:
            known = dict.fromkeys((*self.record.cgroups, *map(str, cgroups)))
            self.record = replace(self.record, cgroups=tuple(known))
        if docker is not None:
            self.record = replace(self.record, docker=docker)
        self._save()

    def _save(self) -> None:
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self.record)))
        draft.replace(self.path)

    def close(self) -> None:
        """Remove the run's directory and record. Idempotent, blocking."""
        if self.closed:
            return
        self.closed = True
        # A record outlives what could not be removed: the next start tries again.
        if remove_tree(self.temp):
            forget(self.directory, self.run_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def forget(directory: Path, run_id: str) -> None:
    """Remove a run's record, and the state directory once it is empty. Blocking."""
    for suffix in (".json", ".tmp"):
        with contextlib.suppress(OSError):
            (directory / f"{run_id}{suffix}").unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()
