"""Quote a client's value in an error or in the log: on one line, and cut off after a few words."""

from __future__ import annotations

import reprlib

LONGEST = 60  # characters of a value that are quoted
MOST_BITS = 256  # of the largest integer whose digits are written

_repr = reprlib.Repr()
_repr.maxlevel = 3  # the standard repr() recurses as deep as the value is nested, and may exceed the stack
_repr.maxlong = _repr.maxstring = _repr.maxother = LONGEST
_repr.maxdict = _repr.maxlist = _repr.maxtuple = 12


def shorten(value: object) -> str:
    """Return a value in quotes on one line, cut off where it is long.

    The work does not grow with the value: a huge number, a long text or a deeply nested list is not written in full.
    """
    if isinstance(value, str | bytes):
        text = repr(value[: LONGEST + 1])
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        text = f"a number of {value.bit_length()} bits"
    else:
        text = _repr.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def cut(text: str, longest: int = 200) -> str:
    """Return a text that can be encoded as UTF-8, cut off after `longest` characters."""
    if len(text) > longest:
        text = f"{text[:longest]}…"
    return text.encode(errors="backslashreplace").decode()
