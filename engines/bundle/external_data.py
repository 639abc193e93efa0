"""Names of the files that an ONNX graph takes its weights from, read without the onnx package.

A graph is a protocol-buffer message. Only the fields that lead to a tensor's `external_data` are followed; their
numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Iterator
from pathlib import Path

Span = tuple[int, int]

MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Fields of each message that contain another one, by number."""
VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
VARINT_BITS = 70
KEY, VALUE = 1, 2


def external_data(path: Path, name: str) -> set[str]:
    """Return the files that the graph in `path` names as external data, relative to the bundle.

    A file that is not a protocol-buffer message names none: no engine can load it.

    Args:
        path: path of the graph.
        name: path of the graph within its bundle, to which the names of its data are relative.

    Raises:
        OSError: the graph cannot be read.
    """
    if path.stat().st_size == 0:
        return set()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            locations = set(_locations(data))
        except ValueError:
            return set()
    return {posixpath.normpath(posixpath.join(posixpath.dirname(name), location)) for location in locations}


def _locations(data: mmap.mmap) -> Iterator[str]:
    """Yield the locations in a model; raise ValueError if it is malformed."""
    pending: list[tuple[str, Span]] = [("model", (0, len(data)))]
    while pending:
        kind, span = pending.pop()
        if kind == "entry":
            entry = {number: data[start:end] for number, (start, end) in _fields(data, span)}
            if entry.get(KEY) == b"location":
                yield entry.get(VALUE, b"").decode("utf-8", errors="backslashreplace")
            continue
        inner = MESSAGES[kind]
        pending += [(inner[number], part) for number, part in _fields(data, span) if number in inner]


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span]]:
    """Yield the number and position of each field of bytes in a message, including the fields of its groups."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, at = _varint(data, at, end)
        elif wire in {FIXED64, FIXED32}:
            at += 8 if wire == FIXED64 else 4
        elif wire == BYTES:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError("a field ends beyond its message")
            yield number, (at, at + length)
            at += length
        elif wire not in {GROUP, GROUP_END}:
            raise ValueError(f"unknown wire type {wire}")
    if at > end:
        raise ValueError("a field ends beyond its message")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Read a number, and return it with the position after it."""
    value = 0
    for shift in range(0, VARINT_BITS, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte has no top bit
            return value, at
    raise ValueError("a number does not end")
