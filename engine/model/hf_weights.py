"""Check and load the weights of models that transformers computes.

Checkpoints may hold tensors under other names than the model, or in other pieces (experts one by
one, say); transformers knows how they belong together. What it would do is worked out here from the
headers alone, so that a missing or wrong tensor is found before any weight is read.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from agentrt.engine.model.hf import HfDecoder, HfSource
from agentrt.engine.model.hf_probe import import_transformers
from agentrt.engine.model.weights import Checkpoint, Progress, Shape
from agentrt.errors import ModelError

__all__ = ["check_weights", "load_weights"]

_logger = logging.getLogger(__name__)
_Rename = Callable[[str], tuple[str, Any]]
"""Gives the model's name of a checkpoint's tensor, and transformers' converter if there is one."""
_KEEPS_COUNT = frozenset({"MergeModulelist", "Concatenate", "Transpose", "PermuteForRope"})
"""Conversions after which a tensor has as many numbers as its pieces had together."""


@dataclass(slots=True)
class _Sources:
    """What a checkpoint has for one tensor of the model, and how that is made of it."""

    names: list[str]
    converter: Any


def _renaming(model: Any, wanted: Mapping[str, torch.Tensor]) -> _Rename:
    """Return how transformers would name a checkpoint's tensors in ``model``."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:
        # Before version 5 a checkpoint had the model's own names, but perhaps without its prefix.
        _logger.info("this transformers has no weight conversions: names are compared as they are")
        prefix = f"{model.base_model_prefix}."
        return lambda name: (name if name in wanted else prefix + name, None)

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    known = dict(wanted)

    def rename(name: str) -> tuple[str, Any]:
        for first, second in ((renamings, converters), ([], [])):
            found, pattern = rename_source_key(name, first, second, model.base_model_prefix, known)
            if found in wanted:
                return found, None if pattern is None else by_pattern[pattern]
        return name, None

    return rename


def check_weights(source: HfSource, checkpoint: Checkpoint) -> None:
    """Compare every header entry with what the model needs; reads no weight.

    Raises:
        ModelError: a tensor is missing, of the wrong shape or dtype, or not understood.
    """
    model = source.skeleton
    wanted: dict[str, torch.Tensor] = model.state_dict()
    rename = _renaming(model, wanted)
    found: dict[str, _Sources] = {}
    surplus: list[str] = []
    for name in checkpoint.names():
        target, converter = rename(name)
        if target not in wanted:
            surplus.append(name)
            continue
        checkpoint.check_dtype(name)
        found.setdefault(target, _Sources([], converter)).names.append(name)
    _check_missing(model, checkpoint, wanted, found)
    for target, sources in found.items():
        _check_shape(checkpoint, tuple(wanted[target].shape), target, sources)
    _check_surplus(model, checkpoint, surplus)


def _check_missing(
    model: Any,
    checkpoint: Checkpoint,
    wanted: Mapping[str, torch.Tensor],
    found: Mapping[str, _Sources],
) -> None:
    tied: Mapping[str, str] = model.all_tied_weights_keys
    groups = {name: {name, tied.get(name, name)} for name in wanted}
    for name, source in tied.items():
        groups.setdefault(source, {source}).add(name)
    # A converter makes several tensors of one group of pieces; only the first carries its name.
    converted = {
        _place(name)
        for name, sources in found.items()
        if sources.converter is not None and len(sources.converter.target_patterns) > 1
    }
    for name in wanted:
        if groups[name] & found.keys() or _place(name) in converted:
            continue
        if _matches(name, model._keys_to_ignore_on_load_missing):
            continue
        raise checkpoint.missing(name)


def _place(name: str) -> str:
    """Return the module that a tensor belongs to."""
    return name.rpartition(".")[0]


def _check_shape(checkpoint: Checkpoint, shape: Shape, target: str, sources: _Sources) -> None:
    if sources.converter is not None:
        _check_pieces(checkpoint, shape, target, sources)
        return
    for name in sources.names:
        if checkpoint.shape(name) != shape:
            raise checkpoint.misshapen(name, shape)


def _check_pieces(checkpoint: Checkpoint, shape: Shape, target: str, sources: _Sources) -> None:
    """Check that pieces hold what a tensor needs, as far as their number of numbers tells."""
    converter = sources.converter
    kinds = {type(step).__name__ for step in converter.operations}
    if len(converter.target_patterns) > 1 or not kinds <= _KEEPS_COUNT:
        return  # transformers itself checks these while it reads them
    found = sum(math.prod(checkpoint.shape(name)) for name in sources.names)
    if found != math.prod(shape):
        raise ModelError(
            f"{checkpoint.file(sources.names[0])}: the {len(sources.names)} tensors like "
            f"{sources.names[0]} hold {found:,} numbers, but {target} {list(shape)} has "
            f"{math.prod(shape):,}.",
            remedy="Download the model again: pieces are missing, or config.json is another's.",
        )


def _check_surplus(model: Any, checkpoint: Checkpoint, surplus: list[str]) -> None:
    ignored = model._keys_to_ignore_on_load_unexpected
    for name in surplus:
        known = name in model.all_tied_weights_keys or name.endswith("rotary_emb.inv_freq")
        if not known and not _matches(name, ignored):
            raise checkpoint.surplus(name, f"a {model.config.model_type} model")


def _matches(name: str, patterns: object) -> bool:
    if not isinstance(patterns, list | tuple | set | frozenset):
        return False
    return any(re.search(pattern, name) for pattern in patterns)


def load_weights(
    source: HfSource, dtype: torch.dtype, device: str, progress: Progress | None
) -> HfDecoder:
    """Load the model through transformers: from memory-mapped files to ``dtype`` and ``device``.

    Raises:
        ModelError: transformers cannot put the weights together.
    """
    transformers = import_transformers()
    total = source.shape.parameters * dtype.itemsize
    if progress is not None:
        progress(0, total)
    try:
        with _one_by_one(transformers), torch.device(device):
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                str(source.directory),
                config=source.skeleton.config,
                dtype=dtype,
                attn_implementation=source.skeleton.config._attn_implementation,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever transformers raises
        raise _failed(source, f"{type(error).__name__}: {error}") from error
    wrong = [*report["missing_keys"], *report["mismatched_keys"], *report.get("error_msgs", ())]
    if wrong:
        raise _failed(source, ", ".join(map(str, wrong[:5])))
    if progress is not None:
        progress(total, total)
    return source.decoder(model.eval().requires_grad_(False))


@contextmanager
def _one_by_one(transformers: Any) -> Iterator[None]:
    """Have transformers read one tensor after the other, without a bar of its own.

    By default its threads read ahead without bound: pieces that are to be put together are then in
    memory twice. Only its environment variable says otherwise.
    """
    name, logging_ = "HF_DEACTIVATE_ASYNC_LOAD", transformers.utils.logging
    before, bars = os.environ.get(name), logging_.is_progress_bar_enabled()
    os.environ[name] = "1"
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging_.enable_progress_bar()
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _failed(source: HfSource, cause: str) -> ModelError:
    return ModelError(
        f"{source.directory}: transformers cannot load the weights: {cause}.",
        remedy="Use the config.json that belongs to these weights, or download the model again.",
    )
