"""What this machine can enforce, what it cannot, and the command that fixes it: all tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Check", "Probe", "examine", "probes"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    ``gives`` is what agentrt can do where it is ``ok``; ``found`` is what is there; ``remedy`` is
    the command or setting that changes it, empty when nothing is to be done.
    """

    name: str
    ok: bool
    gives: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A check to be made; ``look`` returns whether it works, what is there, and the remedy."""

    name: str
    gives: str
    look: Callable[[], tuple[bool, str, str]]

    def run(self) -> Check:
        """Look; a probe that fails itself is a check that is not ok, with the reason."""
        try:
            ok, found, remedy = self.look()
        except Exception as error:  # noqa: BLE001 - a report with a hole is worth more than none
            return Check(self.name, False, self.gives, f"could not be examined: {error}")
        return Check(self.name, ok, self.gives, found, "" if ok else remedy)


def probes() -> Sequence[Probe]:
    """Every check, in the order of the report."""
    from agentrt.resources import doctor_bpf, doctor_kernel, doctor_tools

    return [*doctor_kernel.PROBES, *doctor_bpf.PROBES, *doctor_tools.PROBES]


def examine() -> list[Check]:
    """Make every check. Some seconds; needs no rights, but sees less without them."""
    return [probe.run() for probe in probes()]
