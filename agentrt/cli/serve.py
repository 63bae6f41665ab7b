"""``agentrt serve``: OpenAI's HTTP API over programs."""

from __future__ import annotations

import socket
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.console import Console

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.engine.model.load import Implementation
    from agentrt.resources.governor import GovernorConfig
    from agentrt.runtime import Runtime, RuntimeConfig
    from agentrt.scheduling.tenants import TenantSettings
    from agentrt.serving.settings import ServeSettings

__all__ = ["command"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class _Options:
    host: str
    port: int
    policy: str
    api_keys: Path | None
    guides: Path | None
    drain: float
    access_log: bool
    sandboxes: bool


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]DIR|NAME",
            help="Model directory, or org/name on the hub; default: a small seeded one. Several "
            "are served side by side, chosen by a request's model.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="[MODEL:]NAME=DIR",
            help="LoRA adapter in PEFT's layout; requests name it as their model. May be repeated.",
        ),
    ] = None,
    model_impl: Annotated[
        str,
        typer.Option(
            "--model-impl",
            help="Who computes the model: auto, native or transformers (its attention on our "
            "pages).",
        ),
    ] = "auto",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    policy: Annotated[
        str, typer.Option("--policy", help="Scheduling policy, such as fcfs or continuum.")
    ] = "fixed-ttl=30",
    pool: Annotated[
        int | None,
        typer.Option("--pool", min=1, metavar="TOKENS", help="KV pool; default: by free memory."),
    ] = None,
    host_kv: Annotated[
        str | None,
        typer.Option("--host-kv", metavar="SIZE", help="Host memory for KV; default: none."),
    ] = None,
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", help="auto, int8 or fp8: what KV is kept as.")
    ] = "auto",
    kv_files: Annotated[
        Path | None,
        typer.Option("--kv-files", metavar="DIR", help="Keep KV in files, over restarts too."),
    ] = None,
    kv_files_size: Annotated[
        str, typer.Option("--kv-files-size", metavar="SIZE", help="What these files may take.")
    ] = "8g",
    max_seqs: Annotated[
        int, typer.Option("--max-seqs", min=1, help="Turns that run at the same time at most.")
    ] = 64,
    max_wait: Annotated[
        float,
        typer.Option("--max-wait", min=0, metavar="SECONDS", help="After it, no turn overtakes."),
    ] = 600.0,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or one as cuda:1.")
    ] = "auto",
    tensor_parallel: Annotated[
        int,
        typer.Option(
            "--tensor-parallel",
            min=1,
            metavar="N",
            help="GPUs that hold a part of every layer each (on the CPU: processes).",
        ),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads; default: what helps, within limits."),
    ] = None,
    attention: Annotated[
        str, typer.Option("--attention", help="Kernels: auto, native, triton or torch.")
    ] = "auto",
    quant: Annotated[
        str | None,
        typer.Option("--quant", help="Smaller weights: fp8, or int8 (on CPU in bfloat16)."),
    ] = None,
    draft: Annotated[
        str,
        typer.Option("--draft", help="Guess tokens from what was read: auto, ngram or off."),
    ] = "auto",
    graphs: Annotated[
        str,
        typer.Option("--graphs", help="Record decode steps: auto (on for CUDA), on or off."),
    ] = "auto",
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap", help="Launch a step before the last is read: auto (on for CUDA), on, off."
        ),
    ] = "auto",
    preempt: Annotated[
        str,
        typer.Option(
            "--preempt", help="A long prefill gives way to who comes: auto (on for CUDA), on, off."
        ),
    ] = "auto",
    api_keys: Annotated[
        Path | None,
        typer.Option("--api-keys", metavar="FILE", help="Lines 'KEY TENANT'; default: no keys."),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="TOML with tables [tenants.NAME]."),
    ] = None,
    guides: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Guide runs whose questions may be answered over HTTP."),
    ] = None,
    sandbox: Annotated[
        str,
        typer.Option(
            "--sandbox",
            help="Offer /v1/sandboxes in sandboxes of this kind: docker, bubblewrap or auto.",
        ),
    ] = "none",
    image: Annotated[str | None, typer.Option("--image", help="Image of docker sandboxes.")] = None,
    tool_memory: Annotated[
        str | None,
        typer.Option("--tool-memory", metavar="SIZE", help="Memory for all tool calls together."),
    ] = None,
    tenant_memory: Annotated[
        str | None,
        typer.Option(
            "--tenant-memory", metavar="SIZE", help="Memory for each tenant's tool calls."
        ),
    ] = None,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, metavar="SECONDS", help="Turns may end when stopping."),
    ] = 10.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log each request to stderr.")
    ] = False,
) -> None:
    """Serve OpenAI-compatible clients; every agent among them is a program.

    Ctrl-C or SIGTERM stops it in order: no new turns, running ones may end within --drain seconds,
    the rest is cancelled. A second one cancels at once. No tools run on the server unless --sandbox
    names a kind; they then have no network, and may use what the budgets of memory allow.

    Example: agentrt serve --port 8000 --policy continuum
    """
    from agentrt.resources.units import parse_size
    from agentrt.runtime import RuntimeConfig

    if sandbox != "none" and api_keys is None and host not in LOOPBACK:
        raise ConfigError(
            f"Anyone who reaches {host} could run commands here.",
            remedy="Name a file of --api-keys, or listen on 127.0.0.1.",
        )
    models = model or []
    config = RuntimeConfig(
        model=models[0] if models else None,
        more_models=tuple(models[1:]),
        adapters=tuple(lora or ()),
        model_impl=_implementation(model_impl),
        policy=policy,
        pool_tokens=pool,
        host_kv_bytes=parse_size(host_kv) if host_kv else 0,
        kv_dtype=kv_dtype,
        kv_files=None if kv_files is None else str(kv_files),
        kv_files_bytes=parse_size(kv_files_size),
        max_seqs=max_seqs,
        max_wait=max_wait,
        dtype=dtype,
        device=device,
        tensor_parallel=tensor_parallel,
        threads=threads,
        attention=attention,
        quant=quant,
        draft=draft,
        graphs=graphs,
        overlap=overlap,
        preempt=preempt,
        tenants=_tenants(config_file),
        sandbox=_kind(sandbox),
        image=image,
        governor=_governor(tool_memory, tenant_memory),
    )
    options = _Options(host, port, policy, api_keys, guides, drain, access_log, sandbox != "none")
    anyio.run(_serve, config, options)


def _implementation(name: str) -> Implementation:
    known: dict[str, Implementation] = {
        "auto": "auto",
        "native": "native",
        "transformers": "transformers",
    }
    if name not in known:
        raise ConfigError(
            f"There is no model implementation {name!r}.", remedy=f"Use one of {', '.join(known)}."
        )
    return known[name]


def _kind(name: str) -> str | None:
    """The sandbox kind that was asked for; plain processes are no place for strangers' tools."""
    if name == "process":
        raise ConfigError(
            "The process kind does not confine: it is not offered over HTTP.",
            remedy="Use --sandbox bubblewrap or docker.",
        )
    return None if name == "none" else name


def _governor(memory: str | None, tenant_memory: str | None) -> GovernorConfig:
    from agentrt.resources.envelope import Budget
    from agentrt.resources.governor import GovernorConfig
    from agentrt.resources.units import parse_size

    tenant = parse_size(tenant_memory) if tenant_memory else None
    return GovernorConfig(
        memory=parse_size(memory) if memory else None, tenant=Budget("tenant", memory=tenant)
    )


async def _serve(config: RuntimeConfig, options: _Options) -> None:
    from agentrt.runtime import Runtime
    from agentrt.serving.server import bind, serve

    console = Console(highlight=False, soft_wrap=True)
    settings = _settings(options)
    with bind(options.host, options.port) as sock:
        console.print("Loading the engine …", style="dim")
        async with Runtime.open(config, on_load=_Loading(console)) as runtime:
            await serve(
                runtime,
                settings,
                sock,
                on_started=lambda: _announce(console, runtime, settings, sock, options),
                access_log=options.access_log,
            )
            console.print("Closing the engine …", style="dim")
    console.print("Stopped.")


class _Loading:
    """Says how far a large model is loaded, in steps of a tenth."""

    LARGE = 2**29

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = 0

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // total if total else 10
        if total < self.LARGE or tenths <= self._said:
            return
        self._said = tenths
        size = f"{done / 2**30:.1f} of {total / 2**30:.1f} GiB"
        self._console.print(f"Loading weights: {size}", style="dim")


def _tenants(path: Path | None) -> dict[str, TenantSettings]:
    """Return weights and quotas of tenants from a configuration file.

    Raises:
        ConfigError: it cannot be read, or holds something else than ``[tenants.NAME]`` tables.
    """
    from agentrt.scheduling.tenants import parse_tenants

    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.", remedy="Name a TOML file.") from error
    tenants = tables.pop("tenants", {})
    if tables or not isinstance(tenants, dict):
        raise ConfigError(
            f"{path} holds {', '.join(sorted(tables)) or 'tenants that are no table'}.",
            remedy="Write tables [tenants.NAME] and nothing else.",
        )
    return parse_tenants(tenants, where=str(path))


def _settings(options: _Options) -> ServeSettings:
    from agentrt.serving.settings import ServeSettings, parse_api_keys

    if options.api_keys is None:
        return ServeSettings(
            drain=options.drain, guides=options.guides, sandboxes=options.sandboxes
        )
    try:
        text = options.api_keys.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read {options.api_keys}: {error}.", remedy="Name a text file of API keys."
        ) from error
    keys = parse_api_keys(text, where=str(options.api_keys))
    return ServeSettings(
        drain=options.drain, guides=options.guides, sandboxes=options.sandboxes, api_keys=keys
    )


def _announce(
    console: Console,
    runtime: Runtime,
    settings: ServeSettings,
    sock: socket.socket,
    options: _Options,
) -> None:
    figures = runtime.statistics().scheduler
    nonsense = (
        "; its weights are random: it speaks nonsense" if runtime.config.model is None else ""
    )
    tenants = len(set(settings.api_keys.values()))
    access = f"API keys of {tenants} tenants" if settings.api_keys else "open, no API keys"
    console.print(
        f"[bold]Model[/]    {_models_text(runtime)}{nonsense}",
        f"[bold]Policy[/]   {options.policy}",
        f"[bold]Pool[/]     {figures.pages_total * figures.page_size:,} tokens of KV, "
        f"{runtime.config.max_seqs} turns at once{_host_text(runtime)}",
        f"[bold]Memory[/]   {_memory_text(runtime)}",
        f"[bold]Access[/]   {access}",
        f"[bold]URL[/]      http://{_address(sock, options.host)}/v1   (Ctrl-C stops)",
        sep="\n",
    )
    if not settings.api_keys and options.host not in LOOPBACK:
        console.print("Anyone who reaches this address can use it: see --api-keys.", style="yellow")


def _models_text(runtime: Runtime) -> str:
    """Return the names that requests may use."""
    models = [model.model_name for model in runtime.models]
    adapters = [name for model in runtime.models for name in model.adapters]
    told = ", ".join(models)
    return f"{told}; adapters {', '.join(adapters)}" if adapters else told


def _memory_text(runtime: Runtime) -> str:
    """Return the plan of the device's memory, in one line for each model."""
    return "\n         ".join(runtime.memory.lines())


def _host_text(runtime: Runtime) -> str:
    tier, page = runtime.statistics().tier, runtime.statistics().scheduler.page_size
    return "" if tier is None else f"; {tier.host_pages * page:,} more in host memory"


def _address(sock: socket.socket, host: str) -> str:
    """Return ``host:port`` as a URL writes it, with the port that was really taken."""
    port = sock.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
