"""Manifests that are meant to harm: valid ones, changed at random places, as strategies of hypothesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Keys = tuple[str | int, ...]
NUMBERS = (-1, 0, 1, 3, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**30, 0.5, -0.0, 5e-324, 1.8e308)
TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/../../b",
        "c:\\x",
        "x" * 5000,
        "\n",
        "\r",
        "\x00",
        "\x1b[2J",
        "\x7f",
    ),
    *("\x9b", "\u2028", "\u2029", "\u202e", "\ud800", "\udfff", "\ufeff", "\u00e9", "unet", "unet.onnx", "float32"),
    *("manifest.json", "plans/x", ".hidden", "NaN", "1e5", "$.name", "`", "Expected `int` - at `$.x`", "%s{0}"),
)
RAW = {
    "@NAN@": "NaN",
    "@INFINITY@": "-Infinity",
    "@OUT@": "1e999",
    "@LONG@": "9" * 5000,
    "@DEEP@": "[" * 3000 + "]" * 3000,
    "@NESTED@": '{"a":' * 400 + "1" + "}" * 400,
    "@SURROGATE@": '"\\ud800"',
    "@CONTROL@": '"a\nb"',
    "@ENDS@": "",
}
"""Text that stands for a value and that `json.dumps` would not write."""
values = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.sampled_from([None, True, False, [], {}, *RAW]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.lists(st.integers(-3, 3), max_size=4),
    st.dictionaries(st.text(max_size=4), st.none() | st.integers(), max_size=3),
)


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Yield the path of every value of parsed JSON."""
    yield keys
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*keys, key))


def change(whole: Any, keys: Keys, kind: str, value: Any, other: Keys) -> Any:
    """Return a copy of parsed JSON that is changed at one place.

    Args:
        whole: the parsed JSON.
        keys: where to change it.
        kind: how: put `value` there, remove what is there, put what is at `other` there, repeat, or rename a key.
        value: see `kind`.
        other: see `kind`.
    """
    copy = json.loads(json.dumps(whole))
    if not keys:
        return value if kind == "put" else copy
    *before, last = keys
    parent = _at(copy, before)
    match kind:
        case "put":
            parent[last] = value
        case "remove":
            del parent[last]
        case "exchange":
            parent[last] = json.loads(json.dumps(_at(copy, other)))
        case "repeat":
            parent[last] = [parent[last]] * 3000 if not isinstance(parent[last], list) else parent[last] * 3000
        case "rename" if isinstance(last, str):
            parent[value if isinstance(value, str) else str(value)] = parent.pop(last)
    return copy


def _at(value: Any, keys: Any) -> Any:
    for key in keys:
        value = value[key]
    return value


def to_text(value: Any, twice: str | None) -> str:
    """Return parsed JSON as text. The value of the key `twice` at the top is there twice."""
    text = json.dumps(value)
    if twice is not None and isinstance(value, dict) and twice in value:
        text = text[:-1] + f", {json.dumps(twice)}: {json.dumps(value[twice])}" + "}"
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


KINDS = ("text", "text", "put", "put", "put", "remove", "exchange", "repeat", "rename")


@st.composite
def manifests(draw: st.DrawFn, valid: list[Any]) -> bytes:
    """Return a file: one of `valid` with one to three changes, sometimes cut or with a byte exchanged.

    Many changes put another text where one was, because most texts are passed on to messages and other files.
    """
    value = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(KINDS))
        found = [keys for keys in places(value) if kind != "text" or isinstance(_at(value, keys), str)] or [()]
        alike = sorted({tuple(key for key in keys if isinstance(key, str)) for keys in found})
        field = draw(st.sampled_from(alike))  # first a field, because most places are in long lists of few fields
        keys = draw(st.sampled_from([keys for keys in found if tuple(k for k in keys if isinstance(k, str)) == field]))
        other = draw(st.sampled_from(found))
        if kind == "text":
            value = change(value, keys, "put", draw(st.sampled_from(TEXTS)), other)
        else:
            value = change(value, keys, kind, draw(values), other)
        if kind == "repeat":  # the last change: repeated once more, it would fill the memory
            break
    twice = draw(st.none() | st.sampled_from(["name", "graphs", "files", "schema"]))
    data = to_text(value, twice).encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 12)):
        case 0:
            data = data[: draw(st.integers(0, len(data)))]
        case 1 if data:
            at = draw(st.integers(0, len(data) - 1))
            data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :]
        case 2:
            data = b"\xef\xbb\xbf" + data
    return data
