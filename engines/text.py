"""Text from files and errors, made safe to print."""

from __future__ import annotations

import unicodedata

UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that move the cursor, start a line, reorder text or cannot be encoded."""
JOINERS = "\u200c\u200d"
"""Characters of these categories that words and emoji need."""
LONGEST = 60
"""Characters of a text that are quoted in a message."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def system_reason(error: BaseException) -> str:
    """Return the operating system's text for an error, or the first line of the error's own text."""
    return str(getattr(error, "strerror", None) or first_line(error)).splitlines()[0]


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, which gets an s unless the number is 1: `2 workers`, `1 GPU`."""
    return f"{number if isinstance(number, int) else f'{number:g}'} {noun}{'s' * (number != 1)}"


def quoted(text: str) -> str:
    """Return the text in quotes, with escapes where a terminal would act on it, cut to 60 characters."""
    return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}…"


def printable(text: str) -> str:
    """Return the text on one line, with characters that a terminal would act on written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in UNSAFE and character not in JOINERS
        else character
        for character in text
    )
