"""Write protocol buffers in their text format, limited to the features that a config.pbtxt needs.

Our own writer, because `protobuf` and Triton's message definitions are large dependencies for a few lines of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
"""Fields by name: each is a value, a message, a `Map`, or a list of these."""
INDENT = "  "
ESCAPED = {ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n", ord("\r"): r"\r"}


class Word(str):
    """A name of an enumeration value, which is written without quotes."""

    __slots__ = ()


class Map(dict[str, Any]):
    """A field of type `map<string, …>`, which is written as one entry per key."""


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """Return a message as text, one field per line."""
    lines = []
    for name, value in message.items():
        if isinstance(value, Map):
            lines += [_field(name, {"key": key, "value": item}, indent) for key, item in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str) and _plain(value):
            lines.append(f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]\n")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines += [_field(name, item, indent) for item in value]
        else:
            lines.append(_field(name, value, indent))
    return "".join(lines)


def _field(name: str, value: Any, indent: str) -> str:  # noqa: ANN401
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{to_text(value, indent + INDENT)}{indent}}}\n"
    return f"{indent}{name}: {_scalar(value)}\n"


def _plain(values: Sequence[Any]) -> bool:
    return bool(values) and not any(isinstance(value, Mapping) for value in values)


def _scalar(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return f'"{value.translate(ESCAPED)}"'
    return str(value)
