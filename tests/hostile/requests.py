"""Requests that are meant to harm: the Open Inference Protocol, forms and queries, as strategies of hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([HUGE, -HUGE, 2**63, 1e308, 5e-324, -0.0]),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.sampled_from(["image", "encoded", "labels", "\ud800", "x" * 10_000, "\n", "\x00"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
DEEP = st.integers(60, 2000).map(lambda depth: "[" * depth + "]" * depth)


def or_anything(good: Any) -> st.SearchStrategy[Any]:
    """Mostly a good value, else any other, or one that the JSON text is nested in."""
    return st.one_of(st.just(good), st.just(good), values, st.just("@DEEP@"))


tensors = st.one_of(
    st.fixed_dictionaries(
        {
            "name": or_anything("image"),
            "datatype": or_anything("UINT8"),
            "shape": or_anything([1, 1, 1, 3]),
            "data": or_anything([1, 2, 3]),
        }
    ),
    st.fixed_dictionaries(
        {
            "name": or_anything("encoded"),
            "datatype": or_anything("BYTES"),
            "shape": or_anything([1]),
            "data": or_anything(["AAAA"]),
        },
        optional={"parameters": or_anything({"binary_data_size": 4})},
    ),
)
PARAMETER_NAMES = ("threshold", "anchors", "refine", "fit", "timeout", "binary_data_output")
parameters = st.dictionaries(st.sampled_from(PARAMETER_NAMES) | st.text(max_size=4), values, max_size=3)
messages = st.builds(
    lambda message, deep: json.dumps(message).replace('"@DEEP@"', deep).encode(),
    st.fixed_dictionaries(
        {"inputs": st.lists(tensors, min_size=1, max_size=1) | values},
        optional={"parameters": parameters | values, "outputs": values, "id": values},
    ),
    DEEP,
)
"""Bodies of inference requests, most of them wrong in one or two places."""
heads = st.one_of(st.none(), st.integers(-1, 300).map(str), st.sampled_from(["x", str(HUGE), "1e3", ""]))
"""Values of Inference-Header-Content-Length; None stands for no header."""

CHARSETS = ("undefined", "rot13", "idna", "none", "utf-16", "latin-1", '"', "")
LINES = st.sampled_from(
    [
        b"--b",
        b"--b--",
        b"--",
        b'Content-Disposition: form-data; name="image"; filename="x.png"',
        b"Content-Disposition: form-data; name=image; filename*=utf-8''%ff",
        b"Content-Disposition: form-data",
        b"Content-Type: image/png; charset=undefined",
        b"Content-Transfer-Encoding: base64",
        b"",
        b"\x00\xff\xfe",
        b":" * 50,
        b"x" * 5000,
    ]
)
forms = st.tuples(
    st.lists(LINES | st.binary(max_size=30), max_size=14),
    st.sampled_from([b"\r\n", b"\n", b"\r"]),
    st.sampled_from(["b", "", "b" * 80, "\u00e9"]),
    st.sampled_from(CHARSETS),
).map(lambda part: (part[1].join(part[0]), f"multipart/form-data; boundary={part[2]}; charset={part[3]}".encode()))
"""Bodies of forms, each with its Content-Type."""
queries = st.lists(
    st.tuples(
        st.sampled_from(["threshold", "anchors", "refine", "fit", "timeout", "counts", "x"]),
        st.sampled_from(["0", "-1", "nan", "inf", "1e400", "5e-324", "9" * 5000, "", "%ff", "%00", "a%0Ab", "[]"]),
    ),
    max_size=4,
).map(lambda pairs: "&".join("=".join(pair) for pair in pairs))
