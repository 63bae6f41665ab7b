"""A backend that fails on demand, in every way that the engine is to survive."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agentrt.engine.backend import EngineSample, StepHandle
from agentrt.engine.fake import FakeTurnBackend
from agentrt.scheduling.plan import Sample, StepPlan, StepResult

RAISING = ("raise", "raise late", "memory")
MISFITS = ("nothing", "missing", "stranger", "empty", "words", "no sample")
FAULTS = (*RAISING, *MISFITS, "nan for all")
"""After each of these the engine starts anew."""


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


class FaultyBackend(FakeTurnBackend):
    """Does as :class:`FakeTurnBackend`, except in steps for which ``next_fault`` is set.

    ``lost`` restarts fail before one succeeds.
    """

    next_fault: str | None = None
    spoil: Mapping[StepHandle, str] = MappingProxyType({})
    lost: int = 0

    def launch(self, plan: StepPlan) -> StepHandle:
        fault, self.next_fault = self.next_fault, None
        if fault == "raise":
            raise RuntimeError("the kernel is bad")
        if fault == "memory":
            raise OutOfMemoryError("no memory is left")
        handle = super().launch(plan)
        self.spoil = {**self.spoil, handle: fault} if fault is not None else self.spoil
        return handle

    def wait(self, handle: StepHandle) -> StepResult:
        fault = self.spoil.get(handle)
        if fault == "raise late":
            raise RuntimeError("the kernel was bad")
        result = super().wait(handle)
        return result if fault is None else self._spoilt(fault, handle.plan, result)

    def _spoilt(self, fault: str, plan: StepPlan, result: StepResult) -> StepResult:
        samples: dict[str, Sample] = dict(result.samples)
        bad = EngineSample((), "failed", error="NaN")
        first = plan.slices[0].turn_id
        match fault:
            case "nan for all":
                samples = dict.fromkeys(samples, bad)
            case "nan for one":
                samples = {**samples, **dict.fromkeys(list(samples)[:1], bad)}
            case "nothing":
                return None  # type: ignore[return-value]
            case "missing":
                samples.clear()
            case "stranger":
                samples["somebody else"] = Sample((1,))
            case "empty":
                samples[first] = EngineSample(())
            case "words":
                samples[first] = EngineSample(("a", "b"))  # type: ignore[arg-type]
            case "no sample":
                samples[first] = "token"  # type: ignore[assignment]
            case other:
                raise AssertionError(other)
        return StepResult(samples)

    def restart(self) -> None:
        super().restart()
        if self.lost:
            self.lost -= 1
            raise RuntimeError("the device is gone")
