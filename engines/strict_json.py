"""Strict decoding of JSON into frozen dataclasses: every field's presence and type is checked."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
import types
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

MAX_BYTES = 1 << 20
T = TypeVar("T")


class DecodeError(ValueError):
    """A file can't be decoded. The caller adds to the message how to fix it."""


def read_json(path: Path, kind: type[T], schema: int) -> T:
    """Read a JSON file whose `schema` field equals `schema` as the dataclass `kind`.

    Raises:
        DecodeError: the file is missing, larger than 1 MiB, not JSON or of another schema, or a field is missing or
            has the wrong type.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DecodeError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise DecodeError(f"{path} is larger than {MAX_BYTES} bytes, which none of these files is")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"{path} is not UTF-8 text") from None
    return parse_json(text, kind, schema, str(path))


def parse_json(text: str, kind: type[T], schema: int, where: str) -> T:
    """Decode JSON text as `read_json` does; `where` names the text in messages."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{where} is not JSON ({error})") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != schema:
        raise DecodeError(f"{where} has schema {found!r}, this version of diffseg reads {schema}")
    result: T = _decode(kind, value, where)
    return result


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative path that stays inside its folder, on any system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(name) & set('\\:*?"<>|\0')
    )


def _decode(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401, C901, PLR0911, PLR0912 - one branch per kind of type
    """Turn parsed JSON into `kind`; unknown keys are ignored, because newer versions may add some."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        hints = get_type_hints(kind)
        known = {}
        for item in dataclasses.fields(kind):
            if item.name in value:
                known[item.name] = _decode(hints[item.name], value[item.name], f"{where}: {item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise DecodeError(f"{where}: {item.name!r} is missing")
        try:
            return kind(**known)
        except ValueError as error:
            raise DecodeError(f"{where}: {error}") from None
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise _mismatch(where, f"a list of {'any length' if arguments[-1] is ... else len(arguments)}", value)
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(where, f"one of {', '.join(map(str, arguments))}", value)
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    raise _mismatch(where, kind.__name__, value)


def _mismatch(where: str, expected: str, found: object) -> DecodeError:
    text = textwrap.shorten(repr(found), 60, placeholder="…")
    return DecodeError(f"{where} must be {expected}, found {text}")
