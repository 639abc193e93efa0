"""Strict reading of the JSON records of bundles and plans.

msgspec checks the structure of a record. This module reads the file, rejects content that no record may have, and
writes the error messages: they name the field, state what it must be, and show what was found.
"""

from __future__ import annotations

import bisect
import json
import re
import stat
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import structs

MAX_BYTES = 1 << 20
"""Size limit of a record's file."""
SHOWN = 60
T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A number of bytes, nodes or operations."""
Size = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
"""A length along one axis."""

Keys = tuple[str | int, ...]
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_BOUNDS = {"": "of", ">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}
_EXPECTED = re.compile(r"Expected `([^`]+)`(?: (?:of length )?(>=|<=|>|<|) ?(\d[\d.e+]*))?")
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


class RecordError(ValueError):
    """A record can't be read. The caller extends the message with the way to fix it."""


def read_record(path: Path, kind: type[T], schema: int | tuple[int, ...]) -> T:
    """Read a JSON file whose field `schema` is `schema`, or one of several, as the structure `kind`.

    Raises:
        RecordError: the file is missing, not a regular file, larger than 1 MiB, not JSON or of another schema, or a
            field is missing, of the wrong type or out of range. Unknown fields are ignored.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for its other end
            raise RecordError(f"{path} is not a regular file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RecordError(f"{path} is larger than {MAX_BYTES} bytes, the limit for these files")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise RecordError(f"{path} is not UTF-8 text") from None
    return parse_record(text, kind, schema, str(path))


def parse_record(text: str, kind: type[T], schema: int | tuple[int, ...], where: str) -> T:
    """Decode JSON text as `read_record` does; `where` names the text in messages."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} {_not_json(error, text)}") from None
    found = value.get("schema") if isinstance(value, dict) else None
    known = schema if isinstance(schema, tuple) else (schema,)
    if type(found) is not int or found not in known:
        names = " and ".join(map(str, known))
        raise RecordError(f"{where} has schema {_show(found)}, this version of diffseg reads {names}")
    for keys, string in _strings(value):
        if any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in string):
            raise RecordError(f"{where}: {_name(keys)} contains a control character, found {_show(string)}")
    try:
        return convert_record(value, kind)
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from None


def convert_record(value: object, kind: type[T]) -> T:
    """Turn parsed JSON into the structure `kind`.

    Raises:
        RecordError: a field is missing, of the wrong type or out of range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecordError(_refusal(value, kind, str(error))) from None


def _not_json(error: Exception, text: str) -> str:
    """Describe why text could not be parsed."""
    if isinstance(error, RecursionError):
        return "is not JSON: it is nested too deeply"
    if "out of range" in str(error):
        return "contains a number that is out of range"
    at = re.search(r"malformed: (.*) \(byte (\d+)\)", str(error))
    if at is None:
        return "is not JSON: it ends too early"
    before = text.encode()[: int(at[2])].decode(errors="ignore")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return f"is not JSON: {at[1]} in line {line}, column {column}"


def _strings(value: object, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Yield all strings of parsed JSON with their paths. The keys of objects are included."""
    pending: list[tuple[Keys, object]] = [(keys, value)]
    while pending:
        keys, value = pending.pop()
        if isinstance(value, str):
            yield keys, value
        elif isinstance(value, list):
            pending += [((*keys, i), item) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            for key, item in value.items():
                yield keys, key
                pending.append(((*keys, key), item))


def _refusal(value: Any, kind: type, message: str) -> str:  # noqa: ANN401 - parsed JSON
    """Rewrite an error message of msgspec in terms of the file."""
    reason, found_path, path = message.rpartition(" - at `$")
    keys: Keys = ()
    found: Any = value
    try:
        keys = _locate(value, kind, path if found_path else "", message)
        for key in keys:
            found = found[key]
    except (LookupError, TypeError):  # not a path: text of the file that looks like one
        reason, keys, found = message, (), value
    reason = reason or message
    field = re.search(r"missing required field `(.*)`", reason, re.DOTALL)
    if field:
        return f"'{_name((*keys, field[1]))}' is missing"
    if "out of range" in reason:
        reason = "Expected `float`"
    if reason.startswith("Invalid enum value"):
        expected = f"one of {', '.join(_choices(kind, keys))}"
    elif match := _EXPECTED.match(reason):
        expected = " or ".join(_WORDS.get(name, name) for name in match[1].split(" | "))
        if match[3]:
            expected += f" {_BOUNDS[match[2]]} {match[3].removesuffix('.0')}"
    else:  # raised by a check in one of our own structures
        return f"{_name(keys)}: {reason}" if keys else reason
    return f"{_name(keys)} must be {expected}, found {_show(found)}"


def _locate(value: Any, kind: type, path: str, message: str) -> Keys:  # noqa: ANN401 - parsed JSON
    """Return the path of msgspec's error. msgspec writes `[...]` for the key of a dictionary; this finds the key."""
    keys: Keys = ()
    here = value
    for name, index in _STEP.findall(path.rstrip("`")):
        key: str | int = name or index
        if index == "...":
            names = list(here)

            def fails(last: int, before: Keys = keys, entries: dict[str, Any] = here) -> int:
                """Return 1 if the entries up to `last` cause the same error, else 0."""
                part = _with(value, before, dict(islice(entries.items(), last + 1)))
                try:
                    msgspec.convert(part, kind)
                except msgspec.ValidationError as error:
                    return int(str(error) == message)
                return 0

            key = names[min(bisect.bisect_left(range(len(names)), 1, key=fails), len(names) - 1)]
        elif index:
            key = int(index)
        keys, here = (*keys, key), here[key]
    return keys


def _with(value: Any, keys: Keys, replacement: object) -> Any:  # noqa: ANN401 - parsed JSON
    """Return a copy of parsed JSON in which the value at one path is replaced."""
    if not keys:
        return replacement
    copy = value.copy()
    copy[keys[0]] = _with(value[keys[0]], keys[1:], replacement)
    return copy


def _choices(kind: Any, keys: Keys) -> list[str]:  # noqa: ANN401 - a type
    """Return the values of the `Literal` at a path of a structure, in the order of their declaration."""
    for key in keys:
        if get_origin(kind) in {Union, UnionType}:
            kind = next(one for one in get_args(kind) if one is not NoneType)
        if isinstance(key, int):
            kind = get_args(kind)[0]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = next(field.type for field in structs.fields(kind) if field.encode_name == key)
    return [str(choice) for choice in get_args(kind)]


def _name(keys: Keys) -> str:
    """Return a path as a reader of the file would write it: `graphs.unet.external_data[0]`."""
    name = ""
    for key in keys:
        if isinstance(key, int):
            name += f"[{key}]"
        elif key.isascii() and key.isidentifier():
            name += f".{key}" if name else key
        else:
            name += f"[{_show(key)}]"
    return name or "the record"


def _show(value: object) -> str:
    """Return the JSON of a value, cut to 60 characters. JSON's escapes keep it on one line."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
