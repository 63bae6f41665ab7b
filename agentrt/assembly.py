"""The parts of a runtime, wired: models found and planned, then loaded, then an engine each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agentrt.engine.gpu.buckets import batch_buckets
from agentrt.engine.memory import DeviceBytes, MemoryPlan, ModelPlan, StepBounds, as_size
from agentrt.errors import ConfigError
from agentrt.hints.calls import called_tool
from agentrt.loading import (
    Found,
    Loaded,
    Room,
    Wanted,
    adapted,
    device_bytes,
    find,
    plan_models,
    read,
)
from agentrt.ranks import RankOwner, check_ranks
from agentrt.scheduling import Scheduler, Surroundings, make_policy
from agentrt.scheduling.fairness import by_tenants
from agentrt.scheduling.plan import Event
from agentrt.scheduling.policy import Policy, lru_score
from agentrt.scheduling.tenants import TenantBook, with_quotas
from agentrt.served import Assembled
from agentrt.tools import tool_name

if TYPE_CHECKING:
    import torch

    from agentrt.engine.attention.base import Attention
    from agentrt.engine.backend import TurnBackend
    from agentrt.engine.engine import Engine
    from agentrt.engine.kernels import Kernels
    from agentrt.engine.observed import OnStep
    from agentrt.runtime import RuntimeConfig
    from agentrt.tiering import Costs

__all__ = ["EngineFactory", "find_models", "load_model", "log_taken", "plan_pools"]

_logger = logging.getLogger(__name__)


def find_models(config: RuntimeConfig) -> list[Found]:
    """Find the models of a runtime and check all that can be checked unread; blocking.

    Raises:
        ConfigError, ModelError: a setting or a model directory is wrong.
    """
    import torch

    from agentrt.engine.pace import allowed_threads

    torch.set_num_threads(config.threads or allowed_threads())
    check_ranks(config)
    device = _device(config.device)
    adapters = _adapters(config.adapters)
    found: dict[str, Found] = {}
    for given in (config.model, *config.more_models):
        name, model = _named(given)
        one = find(
            Wanted(
                model=model,
                implementation=config.model_impl,
                dtype=_dtype(config.dtype, device),
                device=device,
                quant=config.quant,
                name=name,
                ranks=config.tensor_parallel,
            )
        )
        if one.name in found:
            raise ConfigError(
                f"Two models are named {one.name!r}: {found[one.name].directory} and "
                f"{one.directory}.",
                remedy="Name them apart, as in --model first=DIR --model second=DIR.",
            )
        asked = adapters.pop(one.name, {}) | ({} if found else adapters.pop(None, {}))
        found[one.name] = replace(one, adapters=adapted(one, asked))
    if adapters:
        raise ConfigError(
            f"There is no model {next(iter(adapters))!r} to adapt.",
            remedy=f"Name one of {', '.join(found)}, as in --lora MODEL:NAME=DIR.",
        )
    _check_names(found)
    return list(found.values())


def _adapters(given: Sequence[str]) -> dict[str | None, dict[str, str]]:
    """Split ``[MODEL:]NAME=DIR``; return directories by model (None: the first), then by name.

    Raises:
        ConfigError: something else was given, or a name twice.
    """
    found: dict[str | None, dict[str, str]] = {}
    for text in given:
        called, equals, directory = text.partition("=")
        model, colon, name = called.rpartition(":")
        mine = found.setdefault(model if colon else None, {})
        if not (equals and name and directory) or name in mine:
            raise ConfigError(
                f"{text!r} names no adapter, or one a second time.",
                remedy="Write NAME=DIR, or MODEL:NAME=DIR for another model than the first.",
            )
        mine[name] = directory
    return found


def _check_names(found: Mapping[str, Found]) -> None:
    """Raise ``ConfigError`` if a request could mean two things by one name."""
    taken = set(found)
    for model in found.values():
        for name in model.adapters:
            if name in taken:
                raise ConfigError(
                    f"{name!r} is the name of an adapter and of something else.",
                    remedy="Give every model and every adapter a name of its own.",
                )
            taken.add(name)


def _named(given: str | None) -> tuple[str | None, str | None]:
    """Split ``NAME=MODEL``; a path may hold an equals sign, a name no slash."""
    name, equals, model = (given or "").partition("=")
    if not equals or not name or "/" in name or Path(given or "").exists():
        return None, given
    return name, model


def plan_pools(
    config: RuntimeConfig, found: Sequence[Found], device: DeviceBytes | None = None
) -> MemoryPlan:
    """Say what memory the models get, and log it. ``device`` is asked where it is not given.

    Raises:
        ConfigError: a size that cannot work.
        ModelError: a model does not fit.
    """
    graphs = () if config.graphs == "off" else batch_buckets(config.max_seqs)
    step = StepBounds(config.token_budget, config.max_seqs, config.page_size, graphs)
    room = Room(config.pool_tokens, config.kv_dtype)
    device = device or device_bytes(found[0].wanted.device, config.tensor_parallel)
    plan = plan_models(found, room, step, device)
    for line in plan.lines():
        _logger.info("Memory: %s", line)
    return plan


def log_taken(plan: MemoryPlan, device: str) -> None:
    """Log what the models that are loaded have really taken of a GPU, beside the plan."""
    if not plan.device.gpu:
        return
    planned = sum(model.total for model in plan.models if model.resident)
    taken = plan.device.free - device_bytes(device).free
    _logger.info("Memory: %s are taken; planned were %s.", as_size(taken), as_size(planned))


def load_model(
    config: RuntimeConfig,
    found: Found,
    on_load: Callable[[int, int], None] | None = None,
    owner: RankOwner | None = None,
) -> tuple[Loaded, Kernels]:
    """Read a model's weights; compile kernels at their first use and pack for them. Blocking.

    ``owner`` starts the other ranks that the model has, and ends them.

    Raises:
        ModelError: the weights cannot be read after all.
        BackendUnavailable: another rank failed.
        ConfigError: kernels or a quantisation that cannot be had for this model.
    """
    from agentrt.engine.kernels import choose_kernels, prepare

    ranks = None
    if owner is not None:
        ranks = owner.launch(config, found.directory, found.source.dtype, found.wanted.device)
    loaded = read(found, on_load, ranks)
    kernels = choose_kernels(config.attention, loaded.model.device.type)
    prepare(loaded.model, kernels, config.quant)
    return loaded, kernels


class EngineFactory:
    """Makes the engines of a runtime's models.

    Args:
        config: the runtime's settings.
        models: how many share host memory for KV, in equal parts.
        on_event: called with every scheduler event.
        on_step: called with every step's plan, start and end.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        models: int,
        on_event: Callable[[Event], None] | None,
        on_step: OnStep | None,
        clock: Callable[[], float],
    ) -> None:
        self._config = replace(config, host_kv_bytes=config.host_kv_bytes // models)
        self._on_event = on_event
        self._on_step = on_step
        self._clock = clock

    def make(self, found: Found, plan: ModelPlan) -> Assembled:
        """Read a model's weights and wire its engine; blocking.

        Raises:
            ModelError, ConfigError: as :func:`load_model`.
        """
        return self.wire(*load_model(self._config, found), plan.pages)

    def wire(self, loaded: Loaded, kernels: Kernels, pages: int) -> Assembled:
        """Make the engine of a loaded model with a pool of ``pages``; blocking."""
        engine, tenants = _assemble(
            self._config,
            loaded,
            kernels,
            pages,
            on_event=self._on_event,
            on_step=self._on_step,
            clock=self._clock,
        )
        return Assembled(engine, tenants, loaded.adapters, loaded.model)


def _assemble(
    config: RuntimeConfig,
    loaded: Loaded,
    kernels: Kernels,
    pages: int,
    *,
    on_event: Callable[[Event], None] | None,
    on_step: OnStep | None,
    clock: Callable[[], float],
) -> tuple[Engine, TenantBook]:
    """Wire page cache, policy, scheduler, attention and backend into an engine."""
    from agentrt.engine.draft import make_drafter
    from agentrt.engine.engine import Engine
    from agentrt.engine.gpu.choose import choose_steps, make_backend
    from agentrt.engine.kernels import make_attention, warm_up
    from agentrt.engine.kv import PageCache
    from agentrt.engine.observed import ObservedBackend
    from agentrt.engine.pace import PacedBackend, allowed_threads
    from agentrt.engine.parallel.leader import ParallelBackend, lead
    from agentrt.engine.parallel.rank import Pages
    from agentrt.engine.tuner import ThreadTuner
    from agentrt.tiering import make_tier, measured_costs

    model = loaded.model
    new_attention: Callable[[], Attention] = partial(
        make_attention,
        kernels,
        model.config,
        pages,
        config.page_size,
        model.dtype,
        model.device,
        config.kv_dtype,
    )
    if loaded.ranks is not None:
        whole = Pages(pages, config.page_size, config.kv_dtype)
        model, new_attention = lead(model, loaded.ranks, whole, new_attention)
    preempt = config.preempts(model.device.type)
    mode = partial(choose_steps, config.graphs, config.overlap, model.device.type)
    computing, steps = make_backend(model, new_attention, mode, config.max_seqs)
    if model.device.type == "cuda":
        warm_up(model, computing.attention())
    tier = make_tier(config, loaded.directory, model, computing.attention)
    costs = measured_costs(
        model, computing.attention(), tier, config.token_budget, measure=config.measure
    )
    policy, tenants = _policy(config, costs, pages * config.page_size)
    retention = policy.retention
    kv = PageCache(pages, config.page_size, retention.score, rescore=retention.rescore)
    host = None
    if tier is not None:
        host = PageCache(tier.pages, config.page_size, lru_score, evicted=tier.evicted)
        tier.keep_in_files(host.runs)
    scheduler = Scheduler(
        kv,
        policy,
        config.scheduler_config(preempt=preempt),
        host=host,
        archive=None if tier is None else tier.archive,
        step_observer=costs.prefill,
        drafter=make_drafter(_draft(config.draft, steps.overlap), computing.foresee),
    )
    backend: TurnBackend = computing
    if config.threads is None and model.device.type == "cpu":
        threads = max(1, allowed_threads() // config.tensor_parallel)
        backend = PacedBackend(backend, ThreadTuner(threads), clock)
    if loaded.ranks is not None:
        backend = ParallelBackend(backend, loaded.ranks)
    if on_step is not None:
        backend = ObservedBackend(backend, on_step, clock)
    engine = Engine(
        scheduler,
        backend,
        tokenizer=loaded.tokenizer,
        clock=clock,
        on_event=on_event,
        called_tool=partial(called_tool, command_name=tool_name),
        mover=tier,
        adapters=loaded.adapters,
        overlap=steps.overlap,
        preempt=preempt,
    )
    return engine, tenants


def _draft(mode: str, overlap: bool) -> str:
    """Return the draft mode: guesses and steps launched early exclude each other."""
    return "off" if mode == "auto" and overlap else mode


def _policy(config: RuntimeConfig, costs: Costs, capacity: int) -> tuple[Policy, TenantBook]:
    """Make the policy, with the tenants' shares above its order where it has none of its own."""
    weights = {name: one.weight for name, one in config.tenants.items()}
    around = Surroundings(
        prefill_seconds=costs.prefill,
        reload_seconds=costs.reload,
        capacity=capacity,
        tenants=weights,
    )
    policy = make_policy(config.policy, around)
    if policy.groups is None and any(weight != 1 for weight in weights.values()):
        policy = by_tenants(policy, weights)
    return with_quotas(policy, config.tenants)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"The device {name!r} cannot be used: {str(error).splitlines()[0]}.",
            remedy="Use auto, cpu, or a CUDA device that nvidia-smi shows.",
        ) from error


def _dtype(name: str, device: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    known["auto"] = torch.float32 if device == "cpu" else torch.bfloat16
    if name not in known:
        raise ConfigError(f"There is no dtype {name!r}.", remedy=f"Use one of {sorted(known)}.")
    return known[name]
