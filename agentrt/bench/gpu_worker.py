"""The process that measures GPU rows: one JSON object a line each way.

It says ``hello`` with what it runs on, then ``rates``; it is told a row and answers with its entry,
until its input ends. A row that raises is told as such, and whether the device can be used no more:
another process then goes on with the next row.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from agentrt.bench.gpu_plan import Row, done, finish, met
from agentrt.errors import AgentRTError

__all__ = ["device_facts", "main", "work"]


def device_facts(device: str) -> dict[str, Any]:
    """Return the device, its driver, and the versions of what it is driven by."""
    import torch

    on_gpu = device.startswith("cuda")
    found = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("triton", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_bytes": torch.cuda.mem_get_info(device)[1] if on_gpu else 0,
        "driver": _driver() if on_gpu else "-",
        "cuda": torch.version.cuda or "-",
        "versions": found,
    }


def _driver() -> str:
    """Return the driver's version as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.split("\n", 1)[0].strip()


def work(dry: bool, profiles: Path, commands: TextIO, answers: TextIO) -> None:
    """Measure what is asked for, until nothing more is."""
    from agentrt.bench.gpu_lab import DRY, REAL, Lab, measure_rates
    from agentrt.bench.gpu_measures import ROWS, measures

    def tell(**about: Any) -> None:
        print(json.dumps(about), file=answers, flush=True)

    setting = DRY if dry else REAL
    tell(hello=device_facts(setting.device))
    rates = measure_rates(setting)
    tell(rates=asdict(rates))
    lab = Lab(setting, rates)
    known = measures(lab)
    rows = {row.name: row for row in ROWS}
    for line in commands:
        name = json.loads(line)["row"]
        entry, broken = _measured(lab, rows[name], known[name], profiles)
        tell(row=entry, broken=broken)


def _measured(lab: Any, row: Row, measure: Any, profiles: Path) -> tuple[dict[str, Any], bool]:
    """Measure a row; return its entry, and whether the device can be used no more."""
    from agentrt.bench.gpu_profile import Kernels, kernel_table

    kernels = Kernels(lab.setting.device) if row.target is not None else None
    start = time.perf_counter()
    try:
        figure = measure(lab, kernels)
        lab.wait()
    except Exception as error:  # noqa: BLE001 - a row that breaks must not take the others along
        traceback.print_exc(file=sys.stderr)
        lab.clear()
        said = error.message if isinstance(error, AgentRTError) else f"{error}"
        why = f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"
        return finish(row, why, failed=True), "CUDA error" in said
    entry = done(row, figure, time.perf_counter() - start)
    if met(row, figure) is False and kernels is not None and kernels.spans:
        profiles.mkdir(parents=True, exist_ok=True)
        file = profiles / f"{row.name}.txt"
        file.write_text(kernel_table(kernels.spans), encoding="utf-8")
        entry["profile"] = f"{profiles.name}/{file.name}"
    return entry, False


def main(arguments: list[str]) -> None:
    """Run as ``python -m agentrt.bench.gpu_worker PROFILES [--dry-run]``."""
    dry = "--dry-run" in arguments
    if dry:  # before anything loads Triton
        os.environ["TRITON_INTERPRET"] = "1"
    # What libraries print must not come between the lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work(dry, Path(arguments[0]), sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
