"""The compiled kernels as Python sees them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from agentrt.engine.attention.native.build import FLAGS, BuildError, build, default_cache
from agentrt.errors import ConfigError

__all__ = ["NativeLibrary", "NativeUnavailable", "load_native"]

_logger = logging.getLogger(__name__)


class NativeUnavailable(ConfigError):
    """The native kernels were asked for and cannot be used here."""


class NativeLibrary:
    """The operators of one build. ``src/ops.cpp`` says what each does.

    Attributes:
        instructions: the widest instruction set that the compiler used.
        file: the library.
    """

    def __init__(self, file: Path, name: str) -> None:
        every: Any = torch.ops
        every.load_library(str(file))
        space = getattr(every, f"agentrt_{name}")
        self.file = file
        self.instructions: str = space.instructions()
        # One overload each; asking for it once saves looking it up at every call.
        self.plan: Callable[..., Any] = space.plan.default
        self.attend: Callable[..., None] = space.attend.default
        self.store_kv: Callable[..., None] = space.store_kv.default
        self.rotate_store: Callable[..., None] = space.rotate_store.default
        classes: Any = torch.classes
        self.layers: Callable[..., Any] = getattr(classes, f"agentrt_{name}").Layers
        self.add_norm: Callable[..., torch.Tensor] = space.add_norm.default
        self.silu_mul: Callable[..., torch.Tensor] = space.silu_mul.default
        self.pack: Callable[..., torch.Tensor] = space.pack.default
        self.linear: Callable[..., torch.Tensor] = space.linear.default
        self.rows: Callable[..., torch.Tensor] = space.rows.default
        self.pack8: Callable[..., Any] = space.pack8.default
        self.linear8: Callable[..., torch.Tensor] = space.linear8.default

    def __repr__(self) -> str:
        return f"<NativeLibrary {self.instructions}: {self.file}>"


def load_native(cache: Path | None = None, flags: Sequence[str] = FLAGS) -> NativeLibrary:
    """Return the kernels, compiling them if this is their first use (about half a minute).

    Args:
        cache: where builds are kept; None takes agentrt's cache directory.
        flags: for the compiler.

    Raises:
        NativeUnavailable: they cannot be compiled or loaded.
    """
    try:
        where = default_cache() if cache is None else cache
        library = NativeLibrary(*build(where, flags, torch.__version__))
    except (BuildError, OSError) as error:
        raise NativeUnavailable(
            f"The native kernels cannot be used: {error}.",
            remedy="Install g++ and ninja (apt-get install g++ ninja-build), or use the torch path "
            "(attention='torch').",
        ) from error
    _logger.debug("Loaded %r.", library)
    return library
