"""Typed configuration: built in Python, changed on the command line, saved as JSON.

A config class is a frozen, keyword-only pydantic dataclass of plain values (str, int, float, bool, tuples and other
configs). Alternatives are unions of `@variant` classes; the saved form names the class in `kind`, within the union that
the field declares, so code can move without breaking a saved run.

    @variant
    class Rope:
        theta: float = 10_000.0

    @config
    class Model:
        position: Union[Rope, NoPosition]
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from jaxllm.core.errors import ConfigError

T = TypeVar("T")
Json = Any

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_TOO_MUCH = ("extra_forbidden", "unexpected_keyword_argument", "unexpected_positional_argument")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a config: frozen, keyword-only, strictly typed, unknown fields refused."""
    made = typing.cast(Any, pydantic_dataclass(frozen=True, kw_only=True, config=_STRICT)(cls))
    if not made.__pydantic_complete__:  # a forward reference would make validation lazy, and its errors late
        raise TypeError(f"{cls.__name__}: define the types of its fields above it")
    construct = made.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        try:
            construct(self, *args, **fields)
        except ValidationError as err:
            raise ConfigError(_first_problem(cls, fields, err, cls.__name__)) from None

    made.__init__ = init
    return typing.cast(type[T], made)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def variant(cls: type[T]) -> type[T]:
    """A config that is one arm of a union. Its saved form carries `kind`, the class name."""
    cls.__annotations__ = {"kind": Literal[cls.__name__], **cls.__annotations__}
    cls.kind = cls.__name__  # type: ignore[attr-defined]
    return config(cls)


def encode(value: Any) -> Json:
    """Config -> JSON-safe value (dicts, lists, str, int, float, bool, None)."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"{type(value).__name__} is not a config value; use str, int, float, bool, a tuple or another config"
    )


def essential(value: Any) -> Json:
    """`encode` without the fields that have their default: a field that is added later changes no hash of it."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: essential(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name == "kind" or getattr(value, f.name) != f.default
        }
    return [essential(v) for v in value] if isinstance(value, (tuple, list)) else encode(value)


def decode(cls: type[T], raw: Json, where: str = "run") -> T:
    """JSON value -> config. ConfigError names the first field at fault, its value and what would do."""
    try:
        # The JSON mode of pydantic is strict about types and still takes lists for tuples.
        return TypeAdapter(cls).validate_json(json.dumps(raw))
    except ValidationError as err:
        raise ConfigError(_first_problem(cls, raw, err, where)) from None


def override(value: T, assignments: Iterable[str], where: str = "run") -> T:
    """Apply `a.b=c` texts to a config: all of them, in whatever order they stand, then one validation of the result.

    Values are JSON (`1e-3`, `true`, `[1,2]`, `{"kind":"Rope"}`) or Python literals; anything else is a string. Items of
    a tuple are named by index (`data.stages.0.steps=10`). Naming another `kind` of a union drops the fields of the old
    one; naming a field of something that is null makes it (`optimizer.ema.decay=0.99`).
    """
    raw, wanted = encode(value), dict[str, Json]()
    for text in assignments:
        path, equals, literal = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"{text!r} is not an assignment; write field.path=value")
        new = _literal(literal)
        if path in wanted and wanted[path] != new:
            raise ConfigError(f"{where}.{path} is given twice: {_show(wanted[path])} and {_show(new)}; leave one out")
        wanted[path] = new
    # The whole before its parts, and what a thing is before what it has.
    for path in sorted(wanted, key=lambda p: (p.count("."), not p.endswith(".kind"))):
        _assign(raw, path.split("."), wanted[path], where)
    return decode(type(value), raw, where)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a config or of a JSON value."""
    return hashlib.sha256(canonical(value if isinstance(value, (dict, list)) else encode(value))).hexdigest()


def canonical(raw: Json) -> bytes:
    """The one byte spelling of a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(raw, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def differences(ours: Json, theirs: Json, where: str = "") -> list[str]:
    """The leaf fields in which two encoded configs differ, as `path: ours -> theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(set(ours) | set(theirs)):
            here = f"{where}.{key}" if where else key
            if key not in ours or key not in theirs:
                found.append(f"{here}: {_show(ours.get(key))} -> {_show(theirs.get(key))}")
            else:
                found += differences(ours[key], theirs[key], here)
        return found
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for d in differences(a, b, f"{where}.{i}")]
    return [] if ours == theirs and type(ours) is type(theirs) else [f"{where}: {_show(ours)} -> {_show(theirs)}"]


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _show(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _literal(text: str) -> Json:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError):
        return text


def _assign(raw: Json, path: list[str], value: Json, where: str) -> None:
    """Set one field of an encoded config. Names that it does not have are left to `decode` to refuse."""
    node = raw
    for i, part in enumerate(path):
        last = i == len(path) - 1
        key: Any = part
        if isinstance(node, list):
            if not (part.isascii() and part.isdigit() and int(part) < len(node)):
                raise ConfigError(f"{where} has {len(node)} items, counted from 0; {part!r} is none of them")
            key = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{where} is {_show(node)} and has no field {part!r}")
        if last:
            if key == "kind" and node.get("kind") != value:
                node.clear()
            node[key] = value
        elif isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node, where = node[key], f"{where}.{part}"


def _arms(tp: Any) -> list[Any]:
    """The alternatives of an annotation, with Annotated and Optional peeled off."""
    if typing.get_origin(tp) is typing.Annotated:
        return _arms(typing.get_args(tp)[0])
    if typing.get_origin(tp) in (typing.Union, types.UnionType):
        return [a for arm in typing.get_args(tp) for a in _arms(arm)]
    return [tp]


def _first_problem(cls: Any, raw: Json, err: ValidationError, where: str) -> str:
    """One line about one error of a failed validation, walking the raw value beside the types."""
    # Every arm of a union without tags has an error of its own: a value with fields was not meant for a word.
    all_errors = err.errors(include_url=False)
    errors = [e for e in all_errors if e["type"] != "literal_error" or not isinstance(e["input"], dict)] or all_errors
    # A misspelt field is unknown and leaves another one missing: what is too much says what to mend.
    error = next((e for e in errors if e["type"] in _TOO_MUCH), errors[0])
    arms, node = _arms(cls), raw
    for part in error["loc"]:
        if isinstance(part, str) and any(getattr(a, "__name__", None) == part for a in arms):
            arms = [a for a in arms if getattr(a, "__name__", None) == part]  # pydantic names the arm of a union
            continue
        if isinstance(part, str) and part.startswith(("tuple[", "function-", "constrained", "list[", "literal[")):
            continue
        where = f"{where}.{part}"
        hints = [h for a in arms for h in [_field_type(a, part)] if h is not None]
        arms = [x for h in hints for x in _arms(h)]
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    parent, _, name = where.rpartition(".")
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{parent} has no field {name!r}" + suggest(name, _fields_at(cls, error["loc"][:-1]))
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return f"{parent} needs a value for {name!r}"
        case "unexpected_positional_argument":
            return f"{parent}: fields are given by name, as in {parent}(field=value)"
        case "union_tag_invalid":
            known = [str(a.kind) for a in arms if hasattr(a, "kind")]
            kind = str((node or {}).get("kind"))
            return f"{where}.kind={kind!r} is unknown" + suggest(kind, known)
        case "union_tag_not_found":
            known = sorted(str(a.kind) for a in arms if hasattr(a, "kind"))
            return f"{where} needs a 'kind', one of {', '.join(known)}"
        case "value_error":
            return f"{where}: {error['ctx']['error']}"
        case _:
            return f"{where}={_show(node)}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _field_type(cls: Any, part: Any) -> Any:
    if isinstance(part, int):
        return typing.get_args(cls)[0] if typing.get_origin(cls) is tuple else None
    return typing.get_type_hints(cls, include_extras=True).get(part) if dataclasses.is_dataclass(cls) else None


def _fields_at(cls: Any, loc: Iterable[Any]) -> list[str]:
    arms = _arms(cls)
    for part in loc:
        named = [a for a in arms if getattr(a, "__name__", None) == part]
        arms = named or [x for a in arms for h in [_field_type(a, part)] if h is not None for x in _arms(h)]
    return [f.name for a in arms if dataclasses.is_dataclass(a) for f in dataclasses.fields(a) if f.name != "kind"]
