"""Parameters that the framework rejected, in our own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffseg.serving.protocol.echo import shorten

EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "given",
    "float_parsing": lambda _: "a number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "int_parsing": lambda _: "a whole number",
    "int_parsing_size": lambda _: "a whole number of fewer digits",
    "int_from_float": lambda _: "a whole number",
    "int_type": lambda _: "a whole number",
    "bool_parsing": lambda _: "true or false",
    "greater_than": lambda context: f"above {context['gt']:g}",
    "greater_than_equal": lambda context: f"at least {context['ge']:g}",
    "less_than": lambda context: f"below {context['lt']:g}",
    "less_than_equal": lambda context: f"at most {context['le']:g}",
    "too_long": lambda context: f"given at most {context['max_length']} times",
    "literal_error": lambda context: "one of " + str(context["expected"]).replace("'", "").replace(" or ", ", "),
    "enum": lambda context: "one of " + str(context["expected"]).replace("'", "").replace(" or ", ", "),
}
"""The text of what a parameter must be, by the framework's kind of error."""


def explain(problem: Mapping[str, Any]) -> str:
    """Say in one line which parameter is wrong, what is allowed and what was found.

    Args:
        problem: one error of Pydantic: `type`, `loc`, `input` and `ctx`.
    """
    name = next((str(part) for part in problem["loc"][1:] if not isinstance(part, int)), str(problem["loc"][0]))
    words = EXPECTED.get(problem["type"])
    expected = "valid" if words is None else words(problem.get("ctx", {}))
    if problem["type"] == "missing":
        return f"{name} must be {expected}, found nothing"
    if problem["type"] == "too_long":
        return f"{name} must be {expected}, found {problem['ctx']['actual_length']}"
    return f"{name} must be {expected}, found {shorten(problem.get('input'))}"
