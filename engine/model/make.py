"""Make seeded checkpoints: whole model directories that are the same bytes for the same arguments.

They have the architecture, the shapes and the cost of real models, and random weights: what they
write is nonsense. That is what makes them fit for demonstrations and tests without a download.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeAlias

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.recipe import SIZES, config_json
from agentrt.engine.model.seeded import write_weights
from agentrt.engine.model.vocabulary import EOS, PAD, SPECIAL, write_json, write_tokenizer
from agentrt.engine.model.weights import tensor_shapes
from agentrt.errors import ModelError

__all__ = [
    "NONSENSE",
    "MadeModel",
    "cache_dir",
    "default_model_dir",
    "ensure_default_model",
    "make_model",
]

Progress: TypeAlias = Callable[[int, int], None]
"""Told bytes of weights made so far, and in all."""

RECIPE = 1
"""Raised whenever the same arguments would give other bytes than before."""

NONSENSE = (
    "Its weights are random: it has the shape and the cost of a real model and speaks nonsense."
)

_MANIFEST = "agentrt-model.json"
_DEFAULT = ("qwen3", "15m", 0)


@dataclass(frozen=True, slots=True)
class MadeModel:
    """What :func:`make_model` did. ``reused``: the directory already held exactly this model."""

    directory: Path
    arch: str
    size: str
    seed: int
    dtype: str
    parameters: int
    reused: bool


def make_model(
    directory: Path | str,
    arch: str = "qwen3",
    size: str = "15m",
    seed: int = 0,
    *,
    dtype: str = "bfloat16",
    progress: Progress | None = None,
) -> MadeModel:
    """Write a model directory with seeded weights and a tokenizer.

    It is made beside its destination and renamed when whole: an interruption leaves nothing there.
    Several processes may make the same directory at once.

    Args:
        directory: where; must not exist, be empty, or hold the same model already.
        arch: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``.
        size: ``15m``, ``135m`` or ``600m`` (and ``tiny``, for tests).
        seed: any integer; another seed gives other weights and the same tokenizer.
        dtype: of the weight files, ``bfloat16`` or ``float32``.
        progress: called after each tensor.

    Raises:
        InvalidRequest: an unknown architecture, size or dtype.
        ModelError: the directory holds something else, or cannot be written.
    """
    target = Path(directory).absolute()
    raw = config_json(arch, size, dtype=dtype, eos=SPECIAL.index(EOS), pad=SPECIAL.index(PAD))
    config = ModelConfig.from_mapping(raw, target / "config.json")
    asked = {"recipe": RECIPE, "arch": arch, "size": size, "seed": seed, "dtype": dtype}
    reused = _holds(target, asked)
    if not reused:
        try:
            reused = not _make(target, raw, config, asked, progress)
        except OSError as error:
            raise ModelError(
                f"{target} cannot be written: {error.strerror}.",
                remedy="Choose a directory on a disk with room that you may write to.",
            ) from error
    return MadeModel(target, arch, size, seed, dtype, config.parameters, reused)


def default_model_dir(cache: Path | None = None) -> Path:
    """Return where the default model is kept, whether it is there yet or not.

    Args:
        cache: agentrt's cache directory; None takes that of ``cache_dir``.
    """
    arch, size, seed = _DEFAULT
    return (cache or cache_dir()) / "models" / f"{arch}-{size}-seed{seed}-r{RECIPE}"


def cache_dir() -> Path:
    """Return agentrt's cache directory, whether it is there yet or not.

    ``$AGENTRT_CACHE``, else ``agentrt`` below ``$XDG_CACHE_HOME``, else ``~/.cache/agentrt``.
    """
    own, general = os.environ.get("AGENTRT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    base = Path(general) if general else Path.home() / ".cache"
    return Path(own) if own else base / "agentrt"


def ensure_default_model(progress: Progress | None = None, *, cache: Path | None = None) -> Path:
    """Return the directory of the default model, making it if it is not there.

    Raises:
        ModelError: the cache cannot be written, or holds something else under that name.
    """
    directory = default_model_dir(cache)
    arch, size, seed = _DEFAULT
    return make_model(directory, arch, size, seed, progress=progress).directory


def _holds(target: Path, asked: Mapping[str, Any]) -> bool:
    """Say whether ``target`` is this very model; False if nothing is there.

    Raises:
        ModelError: something else is there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    manifest = _manifest(target)
    found = {key: manifest.get(key) for key in asked}
    sizes = manifest.get("files")
    if found == asked and isinstance(sizes, dict):
        if all(_size(target / name) == size for name, size in sizes.items()):
            return True
        raise ModelError(
            f"{target} holds this model, but files of it were changed or lost.",
            remedy=f"Remove the directory and make it again: rm -r {target}",
        )
    raise ModelError(
        f"{target} is not empty and does not hold this model.",
        remedy="Choose another directory; nothing was changed.",
    )


def _manifest(target: Path) -> dict[str, Any]:
    try:
        value = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not made by us: the caller refuses the directory
    return value if isinstance(value, dict) else {}


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _make(
    target: Path,
    raw: Mapping[str, Any],
    config: ModelConfig,
    asked: Mapping[str, Any],
    progress: Progress | None,
) -> bool:
    """Make the model; False if another process put the same one there first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(target) as work:
        _fill(work, raw, config, asked, progress)
        try:
            work.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return not _holds(target, asked)
    return True


def _fill(
    work: Path,
    raw: Mapping[str, Any],
    config: ModelConfig,
    asked: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    shape = SIZES[asked["size"]]
    write_tokenizer(work, shape.words, shape.positions)
    write_json(work / "config.json", dict(raw))
    _write_weights(work, config, asked["seed"], range(len(SPECIAL), shape.words), progress)
    title = f"# {asked['arch']}-{asked['size']}, seed {asked['seed']}\n\n"
    (work / "README.md").write_text(f"{title}Made by `agentrt model make`. {NONSENSE}\n")
    # Weight files and the directory are born private; they get the mode of any other new file.
    mode = (work / "config.json").stat().st_mode & 0o666
    for file in work.glob("*.safetensors"):
        file.chmod(mode)
    work.chmod(mode | (mode & 0o444) >> 2)
    sizes = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
    write_json(work / _MANIFEST, {**asked, "files": sizes})


def _write_weights(
    work: Path, config: ModelConfig, seed: int, words: range, progress: Progress | None
) -> None:
    width = 2 if config.dtype == "bfloat16" else 4
    total = width * sum(math.prod(shape) for shape in tensor_shapes(config).values())
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    write_weights(work, config, seed, words=words, on_bytes=on_bytes)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Give a locked directory beside ``target``; it is removed unless it was renamed.

    The lock ends with its process, however that ends: unlocked ones are left-overs, and removed.
    """
    with _locked(target.parent):  # so that nobody sees ours between its making and its locking
        for other in target.parent.glob(f".{target.name}.*.partial"):
            _remove_unlocked(other)
        work = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        handle = _lock(work)
    try:
        yield work
    finally:
        os.close(handle)
        shutil.rmtree(work, ignore_errors=True)


def _lock(directory: Path, flags: int = fcntl.LOCK_EX) -> int:
    """Lock a directory; the lock lasts until the returned descriptor is closed."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, flags)
    except OSError:
        os.close(handle)
        raise
    return handle


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = _lock(directory)
    try:
        yield
    finally:
        os.close(handle)


def _remove_unlocked(work: Path) -> None:
    try:
        handle = _lock(work, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return  # in use, or renamed by its owner meanwhile
    try:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(handle)
