"""StepFly's query preparation plugins, both forms, read as data. No plugin code is ever run.

The class form is a Python file: its attributes and its list of required parameters are taken from
the syntax tree. The extraction form is JSON with ``{{ name | default('x') }}`` templates. Either
becomes a :class:`StepFlyQuery`, which renders the text the original would (:func:`render_compat`)
or a statement with bound parameters (:func:`bind_query`), in ``stepfly_bind.py``.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentrt.errors import GuideError
from agentrt.workflows.guide import Parameter

__all__ = [
    "Field",
    "Piece",
    "StepFlyQuery",
    "parse_extracted_plugins",
    "parse_plugin_class",
    "split_format",
    "split_jinja",
]

_WANTED = ("plugin_id", "description", "source_tsg", "language", "template")
_TIME_NAME = re.compile(r"(^|_)(time|timestamp|date|start|end|since|until)($|_)", re.I)
_JINJA = re.compile(r"\{\{(.*?)\}\}", re.S)
_JINJA_FIELD = re.compile(
    r"^\s*([A-Za-z_]\w*)\s*(?:\|\s*default\(\s*(?:'([^']*)'|\"([^\"]*)\"|([\d.]+))\s*\))?\s*$"
)


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a template where a parameter's value goes; ``default`` if it is not given."""

    name: str
    default: str | None = None


Piece: TypeAlias = str | Field


@dataclass(frozen=True, slots=True)
class StepFlyQuery:
    """One plugin: what it asks, in which language, and the pieces of its template.

    ``timestamps`` are the parameters whose values the original rewrites before rendering.
    """

    id: str
    description: str
    language: str
    pieces: tuple[Piece, ...]
    parameters: tuple[Parameter, ...]
    timestamps: frozenset[str] = frozenset()
    source_guide: str = ""
    form: Literal["class", "extraction"] = "class"
    path: str = ""

    @property
    def name(self) -> str:
        """The query's name in a guide: ``plugin_3``."""
        return f"plugin_{self.id}"


def parse_plugin_class(text: str, path: str) -> StepFlyQuery:
    """Read a plugin's class from Python source, without running it.

    Raises:
        GuideError: not Python, no class with a constant ``template``, or a template that is more
            than plain ``{name}`` fields; names file and line.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise GuideError(f"{path}:{line}: not Python: {error}.", remedy=_REMEDY) from None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for found in classes:
        values = dict(_attributes(found, path))
        if "template" in values:
            return _from_class(found, values, path)
    raise GuideError(f"{path}:1: no class with a template was found.", remedy=_REMEDY)


def parse_extracted_plugins(text: str, path: str) -> tuple[StepFlyQuery, ...]:
    """Read the JSON form: ``{"plugins": [...]}``.

    Raises:
        GuideError: another form, an expression that is not ``{{ name | default('x') }}``, or a
            parameter that is used and not declared; names the file and the plugin.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise GuideError(f"{path}:{error.lineno}: not JSON: {error.msg}.", remedy=_REMEDY) from None
    plugins = data.get("plugins") if isinstance(data, dict) else None
    if not isinstance(plugins, list) or not all(isinstance(item, dict) for item in plugins):
        raise GuideError(f"{path}:1: 'plugins' must be a list of objects.", remedy=_REMEDY)
    return tuple(
        _from_extraction(item, f"{path}: plugins[{at}]") for at, item in enumerate(plugins)
    )


def split_format(template: str, place: str) -> tuple[Piece, ...]:
    """Cut a ``str.format`` template into texts and fields.

    Raises:
        GuideError: a field is not a plain name (``{0}``, ``{a.b}``, ``{a!r}``, ``{a:>3}``).
    """
    pieces: list[Piece] = []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise GuideError(f"{place}: not a format template: {error}.", remedy=_REMEDY) from None
    for literal, field, spec, conversion in parsed:
        if literal:
            pieces.append(literal)
        if field is None:
            continue
        if not field.isidentifier() or spec or conversion:
            raise GuideError(
                f"{place}: the template's field {field!r} is not a plain name.",
                remedy="Use {name} only; attributes, formats and conversions are refused.",
            )
        pieces.append(Field(field))
    return tuple(pieces)


def split_jinja(template: str, place: str) -> tuple[Piece, ...]:
    """Cut a template with ``{{ name }}`` and ``{{ name | default('x') }}`` into pieces.

    Raises:
        GuideError: anything else stands between braces, or there are ``{% %}`` blocks.
    """
    if "{%" in template or "{#" in template:
        raise GuideError(f"{place}: blocks and comments are refused.", remedy=_JINJA_REMEDY)
    pieces: list[Piece] = []
    at = 0
    for match in _JINJA.finditer(template):
        pieces.extend(_texts(template[at : match.start()]))
        field = _JINJA_FIELD.match(match[1])
        if field is None:
            raise GuideError(f"{place}: cannot read {match[0]!r}.", remedy=_JINJA_REMEDY)
        pieces.append(Field(field[1], next((g for g in field.groups()[1:] if g is not None), None)))
        at = match.end()
    return (*pieces, *_texts(template[at:]))


_REMEDY = "Write the plugin as a class with constant attributes, or as a TOML query."
_JINJA_REMEDY = "Use {{ name }} or {{ name | default('value') }}."


def _texts(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _from_class(found: ast.ClassDef, values: Mapping[str, str], path: str) -> StepFlyQuery:
    place = f"{path}:{found.lineno}"
    pieces = split_format(values["template"], place)
    required = _required(found, path)
    used = list(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Field)))
    if unknown := [name for name in required if name not in used]:
        # The original asks for them all the same, so they stay parameters.
        used += unknown
    timestamps = _timestamps(found, used)
    return StepFlyQuery(
        id=values.get("plugin_id", "") or _number_in(path),
        description=values.get("description", ""),
        language=values.get("language", "sql"),
        pieces=pieces,
        parameters=tuple(
            Parameter(name, type="timestamp" if name in timestamps else "string") for name in used
        ),
        timestamps=timestamps,
        source_guide=values.get("source_tsg", ""),
        path=path,
    )


def _number_in(path: str) -> str:
    found = re.search(r"plugin_(\d+)\.py$", path)
    if found is None:
        raise GuideError(f"{path}:1: the plugin has no plugin_id.", remedy=_REMEDY)
    return found[1]


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Every ``name = value`` and ``self.name = value`` below a node."""
    for child in ast.walk(node):
        if isinstance(child, ast.Assign):
            targets, value = child.targets, child.value
        elif isinstance(child, ast.AnnAssign) and child.value is not None:
            targets, value = [child.target], child.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, value
            elif isinstance(target, ast.Attribute):
                yield target.attr, value


def _attributes(found: ast.ClassDef, path: str) -> Iterator[tuple[str, str]]:
    """The class's own attributes, and those that ``__init__`` sets."""
    bodies = [node for node in found.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    inits = [
        node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    for node in (*bodies, *inits):
        for name, value in _assignments(node):
            if name not in _WANTED:
                continue
            constant = _constant(value)
            if constant is None:
                raise GuideError(
                    f"{path}:{value.lineno}: {name} is not a constant text.", remedy=_REMEDY
                )
            yield name, _id(constant) if name == "plugin_id" else constant


def _id(text: str) -> str:
    return text.removeprefix("plugin_").strip()


def _constant(node: ast.expr) -> str | None:
    """The text of a constant, of constants added up, or of one that is stripped."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
        return str(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _constant(node.left), _constant(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        inner = _constant(node.func.value)
        return inner.strip() if inner is not None and node.func.attr == "strip" else None
    return None


def _required(found: ast.ClassDef, path: str) -> tuple[str, ...]:
    for name, value in _assignments(found):
        if name != "required_params":
            continue
        names = _names(value)
        if names is None:
            raise GuideError(
                f"{path}:{value.lineno}: required_params is not a list of texts.", remedy=_REMEDY
            )
        return names
    return ()


def _names(node: ast.expr) -> tuple[str, ...] | None:
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    texts = [item.value for item in node.elts if isinstance(item, ast.Constant)]
    if len(texts) != len(node.elts) or not all(isinstance(text, str) for text in texts):
        return None
    return tuple(str(text) for text in texts)


def _timestamps(found: ast.ClassDef, used: list[str]) -> frozenset[str]:
    """The parameters that the class rewrites: beside a ``replace("T", ...)``, else by name."""
    scopes = [node for node in ast.walk(found) if _replaces_t(node)]
    if not scopes:
        return frozenset()
    near: set[str] = set()
    for node in ast.walk(found):
        if isinstance(node, ast.For | ast.If | ast.Assign) and any(
            child in scopes for child in ast.walk(node)
        ):
            near.update(_mentioned(node))
    named = frozenset(name for name in used if name in near)
    return named or frozenset(name for name in used if _TIME_NAME.search(name))


def _replaces_t(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "replace"
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == "T"
    )


def _mentioned(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif isinstance(child, ast.Name):
            yield child.id


def _from_extraction(item: Mapping[str, Any], place: str) -> StepFlyQuery:
    template = item.get("templated_code")
    identity = str(item.get("plugin_id", "")).removeprefix("plugin_")
    if not isinstance(template, str) or not identity:
        raise GuideError(f"{place}: 'plugin_id' and 'templated_code' are needed.", remedy=_REMEDY)
    pieces = split_jinja(template, place)
    declared = item.get("parameters", [])
    if not isinstance(declared, list) or not all(isinstance(one, dict) for one in declared):
        raise GuideError(f"{place}: 'parameters' must be a list of objects.", remedy=_REMEDY)
    parameters = tuple(_parameter(one, place) for one in declared)
    known = {parameter.name for parameter in parameters}
    for piece in pieces:
        if isinstance(piece, Field) and piece.name not in known:
            raise GuideError(
                f"{place}: {piece.name!r} is used and not declared.",
                remedy="Add it to the plugin's parameters.",
            )
    return StepFlyQuery(
        id=identity,
        description=str(item.get("description", "")),
        language=str(item.get("language", "sql")),
        pieces=pieces,
        parameters=parameters,
        timestamps=frozenset(),
        form="extraction",
        path=place,
    )


_TYPES = {
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "datetime": "timestamp",
    "timestamp": "timestamp",
    "date": "timestamp",
}


def _parameter(item: Mapping[str, Any], place: str) -> Parameter:
    name = item.get("name")
    if not isinstance(name, str) or not name.isidentifier():
        raise GuideError(f"{place}: a parameter has no usable name: {name!r}.", remedy=_REMEDY)
    default = item.get("default_value")
    return Parameter(
        name,
        str(item.get("description", "")),
        _TYPES.get(str(item.get("type", "string")).lower(), "string"),
        required=bool(item.get("required", True)),
        default=None if default is None else str(default),
    )
