"""Several ranks for a runtime's model: what they cannot do, where they run, their start and end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from agentrt.engine.parallel.ranks import Ranks
    from agentrt.runtime import RuntimeConfig

__all__ = ["RankOwner", "check_ranks", "rank_devices"]

_LEAVE_OUT = "leave --tensor-parallel out"


def check_ranks(config: RuntimeConfig) -> None:
    """Refuse what several ranks cannot do.

    Raises:
        ConfigError: a setting that does not go with them, or no number of ranks.
    """
    size = config.tensor_parallel
    if size < 1:
        raise ConfigError(
            f"There cannot be {size} ranks.", remedy="Give --tensor-parallel a number from 1 on."
        )
    if size == 1:
        return
    if config.model_impl == "transformers":
        raise ConfigError(
            "Several ranks are for models that our own decoder computes.",
            remedy=f"Leave --model-impl out, or {_LEAVE_OUT}.",
        )
    if config.more_models or config.adapters:
        raise ConfigError(
            "Several ranks compute one model without adapters.",
            remedy=f"Leave the other models and --lora out, or {_LEAVE_OUT}.",
        )
    if config.host_kv_bytes or config.kv_files is not None:
        raise ConfigError(
            "KV in host memory or files is kept by one process; with several ranks each has a part "
            "of every page.",
            remedy=f"Leave --host-kv and --kv-files out, or {_LEAVE_OUT}.",
        )


def rank_devices(device: str, size: int, count: int) -> list[str]:
    """Return each rank's device: from the one that was asked for on, all on the CPU if it is that.

    Args:
        device: rank 0's, as ``cpu``, ``cuda`` or ``cuda:1``.
        size: how many ranks there are.
        count: how many CUDA devices there are.

    Raises:
        ConfigError: there are not enough of them.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return [device] * size
    first = int(index or 0)
    if first + size > count:
        raise ConfigError(
            f"{size} ranks from {kind}:{first} on need {first + size} CUDA devices; there are "
            f"{count}.",
            remedy=f"Use --tensor-parallel {max(1, count - first)}, or fewer.",
        )
    return [f"{kind}:{first + rank}" for rank in range(size)]


class RankOwner:
    """Starts ranks, and ends them whatever happens. Enter it before the engine that uses them."""

    def __init__(self) -> None:
        self._ranks: list[Ranks] = []

    def launch(
        self, config: RuntimeConfig, directory: Path, dtype: torch.dtype, device: str
    ) -> Ranks | None:
        """Start the other ranks of a model, which begin to load; None where there is one. Blocking.

        Raises:
            ConfigError: too few devices.
            BackendUnavailable: a rank failed, or they could not meet.
        """
        if config.tensor_parallel == 1:
            return None
        import torch

        from agentrt.engine.pace import allowed_threads
        from agentrt.engine.parallel.group import TorchGroup
        from agentrt.engine.parallel.rank import RankSettings
        from agentrt.engine.parallel.ranks import Ranks

        size = config.tensor_parallel
        devices = rank_devices(device, size, torch.cuda.device_count())
        threads = max(1, (config.threads or allowed_threads()) // size)
        settings = RankSettings(
            directory=str(directory),
            dtype=str(dtype).removeprefix("torch."),
            device=devices[0],
            rank=0,
            size=size,
            meeting="",
            seconds=0.0,
            kernels=config.attention,
            quant=config.quant,
            threads=threads,
        )
        torch.set_num_threads(threads)
        ranks = Ranks(settings, devices, TorchGroup(0, size, torch.device(devices[0])))
        self._ranks.append(ranks)
        ranks.launch()
        return ranks

    def close(self) -> None:
        """End all of them. Blocking, for some seconds at most. Idempotent."""
        for ranks in self._ranks:
            ranks.close()
        self._ranks.clear()
