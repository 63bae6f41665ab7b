"""Choosing the kind of sandbox: the strongest that works, and never the weakest in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from agentrt.errors import ConfigError, SandboxUnavailable
from agentrt.sandbox.base import Probe, SandboxKind, SandboxProvider
from agentrt.sandbox.reaper import reap
from agentrt.sandbox.state import Owner, RunState

__all__ = [
    "KINDS",
    "Choice",
    "Decision",
    "KindName",
    "choose",
    "decide",
    "make_provider",
    "reap_containers",
]

KindName: TypeAlias = Literal["auto", "docker", "bubblewrap", "process"]
KINDS: tuple[SandboxKind, ...] = ("docker", "bubblewrap", "process")
"""Strongest first."""

NO_CONFINEMENT = "process does not confine: commands see, change and reach all that your user can"
REMEDY = (
    "Install bubblewrap (apt-get install bubblewrap), or start a Docker engine and name an image, "
    "or name the process kind explicitly if you trust the work."
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Pure outcome: the chosen kind, the next one to probe, or neither, with lines that say why."""

    kind: SandboxKind | None
    probe_next: SandboxKind | None
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The provider to use. ``why`` holds lines for the user: which kind, and why none stronger."""

    provider: SandboxProvider
    kind: SandboxKind
    why: tuple[str, ...]
    probe: Probe


def decide(name: KindName, probes: Sequence[Probe], *, trusted: bool) -> Decision:
    """Pure: given what was probed so far, choose, probe further, or give up.

    ``process`` is only ever chosen by name or for trusted work.
    """
    passed: list[str] = []
    for kind in KINDS if name == "auto" else (name,):
        if name == "auto" and kind == "process" and not trusted:
            break
        probe = next((p for p in probes if p.kind == kind), None)
        if probe is None:
            return Decision(None, kind, tuple(passed))
        if probe.ok:
            return Decision(kind, None, (_chosen(probe, name), *passed))
        passed.append(f"not {kind}: {probe.reason}. {probe.remedy}".strip())
    return Decision(None, None, tuple(passed))


def _chosen(probe: Probe, name: KindName) -> str:
    how = "as named" if name != "auto" else "the strongest that works here"
    limits = ", ".join(probe.enforces) or "nothing"
    line = f"sandbox: {probe.kind} ({how}); enforces {limits}"
    missing = [limit for limit in ("memory", "cpu", "pids") if limit in probe.missing]
    line += "".join(f"; not {limit} ({probe.missing[limit]})" for limit in missing)
    return f"{line}; {NO_CONFINEMENT}" if probe.kind == "process" else line


def make_provider(
    kind: SandboxKind, *, state: RunState | None = None, image: str | None = None
) -> SandboxProvider:
    """A provider of ``kind``. Docker's client is loaded only for its kind."""
    if kind == "docker":
        from agentrt.sandbox.docker import DockerProvider

        return DockerProvider(state, image=image)
    if kind == "bubblewrap":
        from agentrt.sandbox.bubblewrap import BubblewrapProvider

        return BubblewrapProvider(state)
    from agentrt.sandbox.process import ProcessProvider

    return ProcessProvider(state)


def reap_containers(dead: Callable[[Owner], bool]) -> int:
    """Remove the containers of dead owners; loads Docker's client only when called.

    Raises:
        BackendUnavailable: no engine answers.
    """
    from agentrt.sandbox.docker import remove_containers

    return remove_containers(dead)


async def choose(
    kind: str = "auto",
    *,
    trusted: bool = False,
    state: RunState | None = None,
    image: str | None = None,
    providers: Mapping[SandboxKind, SandboxProvider] | None = None,
) -> Choice:
    """Choose a provider by trying kinds for real; first clean up after dead runs.

    ``auto`` takes the strongest that works: docker (only where ``image`` is named), bubblewrap, and
    process only for ``trusted`` work. ``providers`` replaces the real ones. The caller closes the
    choice's provider.

    Raises:
        ConfigError: ``kind`` is no kind.
        SandboxUnavailable: no permitted kind works; the message says why and what would help.
    """
    name = parse_kind(kind)
    if providers is None:
        await reap(state.directory if state else None, containers=reap_containers)
    probes: list[Probe] = []
    while True:
        decision = decide(name, probes, trusted=trusted)
        wanted = decision.probe_next or decision.kind
        if wanted is None:
            raise SandboxUnavailable(
                "No sandbox for this work: " + "; ".join(decision.why) + ".", remedy=REMEDY
            )
        if wanted == "docker" and image is None and name == "auto" and providers is None:
            probes.append(Probe("docker", ok=False, reason="no image named", remedy=NAME_IMAGE))
            continue
        provider = (
            providers[wanted] if providers else make_provider(wanted, state=state, image=image)
        )
        probe = await provider.probe()
        probes.append(probe)
        if probe.ok:
            return Choice(provider, wanted, decide(name, probes, trusted=trusted).why, probe)
        await provider.close()


NAME_IMAGE = "Name one with --image."


def parse_kind(kind: str) -> KindName:
    """The kind by its name.

    Raises:
        ConfigError: there is no such kind.
    """
    for known in get_args(KindName):
        if kind == known:
            found: KindName = known
            return found
    raise ConfigError(
        f"There is no sandbox kind {kind!r}.",
        remedy=f"Use one of: {', '.join(get_args(KindName))}.",
    )
