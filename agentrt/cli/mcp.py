"""``agentrt mcp``: an ``exec`` tool for any MCP client, on stdin and stdout."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]

LONGEST_LINE = 16 << 20


def command(
    sandbox: Annotated[
        str, typer.Option("--sandbox", help="docker, bubblewrap, process or auto.")
    ] = "auto",
    image: Annotated[str | None, typer.Option(help="Image of a docker sandbox.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="Directory whose copy is the work directory.")
    ] = None,
    network: Annotated[str, typer.Option(help="none or host.")] = "none",
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for all tool calls together.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a JSON line about each call.")
    ] = None,
) -> None:
    """Serve the tool exec over MCP on stdin and stdout, in one sandbox that lives as long.

    Its arguments: command, timeout, intent. What stopped or slowed a command is in its answer.

    Example: agentrt mcp --source . --memory 4g
    """
    import anyio

    try:
        anyio.run(_serve, sandbox, image, source, network, memory, log)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _serve(
    kind: str,
    image: str | None,
    source: Path | None,
    network: str,
    memory: str | None,
    log: Path | None,
) -> None:
    import anyio

    from agentrt import __version__
    from agentrt.cli.sandbox import make_spec
    from agentrt.mcp import EXEC_TOOL, McpServer, run_exec
    from agentrt.resources.governor import Governor, GovernorConfig
    from agentrt.resources.units import parse_size
    from agentrt.sandbox import Limits, choose

    spec = make_spec(source, network, image, Limits())
    choice = await choose(kind, image=image)
    async with choice.provider as provider:
        governor = Governor(GovernorConfig(memory=parse_size(memory) if memory else None, log=log))
        await provider.govern(governor)
        try:
            async with await provider.create(spec) as box:
                for line in choice.why:
                    typer.echo(f"agentrt: {line}", err=True)

                async def run(arguments: Mapping[str, Any]) -> dict[str, Any]:
                    return await run_exec(box, arguments)

                output = anyio.wrap_file(sys.stdout)

                async def write(text: str) -> None:
                    await output.write(text)
                    await output.flush()

                server = McpServer({"exec": (EXEC_TOOL, run)}, write, __version__)
                await server.serve(_lines())
        finally:
            governor.close()


async def _lines() -> AsyncIterator[str]:
    """Lines of standard input; one that is too long is answered as what it is: no JSON."""
    import anyio.to_thread

    while True:
        line = await anyio.to_thread.run_sync(
            sys.stdin.buffer.readline, LONGEST_LINE, abandon_on_cancel=True
        )
        if not line:
            return
        yield line.decode(errors="replace")
