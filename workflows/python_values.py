"""Values of Python steps as JSON and back, by their annotations."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from agentrt.workflows.executor_context import StepFailure

__all__ = ["decode", "encode", "hints"]

_PLAIN: tuple[type, ...] = (str, bool, int, float)


def hints(function: Any) -> dict[str, Any]:
    """Return the annotations of a function; those that cannot be resolved here are left out."""
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        return {}  # names that exist only for type checkers: values then pass as plain JSON


def encode(value: Any, annotation: Any = Any, *, where: str = "value") -> Any:
    """Return a value as JSON values.

    Raises:
        StepFailure: it is not of the annotated type, or not of a kind that a log can keep.
    """
    _check(value, annotation, where)
    if value is None or isinstance(value, _PLAIN):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: encode(getattr(value, f.name), where=f"{where}.{f.name}") for f in fields}
    if isinstance(value, Mapping):
        _check_keys(value, where)
        return {key: encode(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [encode(item, where=f"{where}[{at}]") for at, item in enumerate(items)]
    raise StepFailure(
        f"{where} is a {type(value).__name__}, which the log cannot keep.",
        remedy="Return texts, numbers, lists, mappings with text keys, or dataclasses of these.",
    )


def decode(value: Any, annotation: Any) -> Any:
    """Return JSON values as the annotated type; unknown annotations leave them as they are.

    Raises:
        StepFailure: they do not fit a dataclass.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if value is None:
        return None
    if origin in (Union, types.UnionType):
        inner = [each for each in arguments if each is not type(None)]
        return decode(value, inner[0]) if len(inner) == 1 else value
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _made(value, annotation)
    if origin in (list, tuple, set, frozenset, Sequence) and isinstance(value, list):
        return _sequence(value, annotation, origin, arguments)
    if origin in (dict, Mapping) and len(arguments) == 2:
        return {key: decode(item, arguments[1]) for key, item in value.items()}
    return float(value) if annotation is float and isinstance(value, int) else value


def _sequence(value: list[Any], annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin is tuple and Ellipsis not in arguments:
        pairs = zip(value, arguments, strict=len(arguments) == len(value))
        return tuple(decode(item, each) for item, each in pairs)
    inner = arguments[0] if arguments else Any
    made = [decode(item, inner) for item in value]
    return made if origin in (list, Sequence) else origin(made)


def _made(value: Any, annotation: type) -> Any:
    known = hints(annotation)
    try:
        return annotation(**{key: decode(v, known.get(key, Any)) for key, v in value.items()})
    except (TypeError, AttributeError) as error:
        raise StepFailure(
            f"{_brief(value)} is no {annotation.__name__}: {error}.",
            remedy="The type changed since the run was recorded; fork it from an earlier step.",
        ) from error


def _check(value: Any, annotation: Any, where: str) -> None:
    """Check the outermost type, as far as an annotation names a plain one or a dataclass."""
    plain = annotation in (*_PLAIN, list, dict) or dataclasses.is_dataclass(annotation)
    origin = get_origin(annotation)
    wanted = annotation if plain else origin if origin in (list, dict, tuple, set) else None
    if wanted is None or not isinstance(wanted, type):
        return
    number = wanted is float and isinstance(value, int)
    truth = isinstance(value, bool) and wanted in (int, float)
    if (isinstance(value, wanted) or number) and not truth:
        return
    raise StepFailure(
        f"{where} is {_brief(value)}, a {type(value).__name__}, and should be a {wanted.__name__}.",
        remedy="Correct the function or its annotation.",
    )


def _check_keys(value: Mapping[Any, Any], where: str) -> None:
    for key in value:
        if not isinstance(key, str):
            raise StepFailure(
                f"{where} has the key {_brief(key)}, which is no text.",
                remedy="Use texts as keys; JSON knows no others.",
            )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
