"""Messages about wrong usage of the command line: one line in our own words, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

import typer
from diffseg.cli.terminal import WRONG_USAGE, fail
from typer.core import TyperGroup

# `UsageError`: Click's own, or that of the copy of Click inside newer versions of Typer.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
NUMBERS = {int: "a whole number", float: "a number"}


class Commands(TyperGroup):
    """The group of all commands. It replaces the framework's messages about wrong usage."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run a command; see `TyperGroup.main`. Outside standalone mode, return its result and raise its errors."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(
                arguments,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except UsageError as error:
            if not standalone_mode:
                raise
            fail(explain(error, arguments, list(self.commands)), WRONG_USAGE)
        except typer.Abort:
            if not standalone_mode:
                raise
            fail("aborted")
        if not standalone_mode:
            return code
        sys.exit(code or 0)


def explain(error: Any, arguments: Sequence[str], commands: Sequence[str]) -> str:  # noqa: ANN401 - its class depends on the version of Typer
    """Return one line that states what is wrong, what was found, and where to read more.

    Args:
        error: a usage error of Typer or Click.
        arguments: the command line without the program's name, to quote the rejected value.
        commands: names of all commands.
    """
    first = next((argument for argument in arguments if not argument.startswith("-")), "")
    if error.message.startswith("No such command"):
        close = get_close_matches(first, commands)
        hint = f"did you mean {close[0]}" if close else f"choose one of {', '.join(commands)}"
        return f"unknown command '{first}'; {hint}; see diffseg --help"
    where = f"diffseg {first} --help" if first in commands else "diffseg --help"
    return f"{_problem(error, arguments).rstrip('.')}; see {where}"


def _problem(error: Any, arguments: Sequence[str]) -> str:  # noqa: ANN401
    kind, parameter = type(error).__name__, getattr(error, "param", None)
    if kind == "MissingParameter" and parameter is not None:
        noun = "argument" if parameter.param_type_name == "argument" else "option"
        return f"missing {noun} {_name(parameter)}"
    if kind == "NoSuchOption":
        close = get_close_matches(error.option_name, error.possibilities or (), cutoff=0.7)
        return f"unknown option {error.option_name}" + (f"; did you mean {close[0]}" if close else "")
    if kind == "BadOptionUsage":
        return f"option {error.option_name} {_values(error.message)}"
    if parameter is not None and error.param_hint is None:  # the framework rejected a value
        return f"{_name(parameter)} must be {_expected(parameter, error.message)}{_found(parameter, arguments)}"
    if error.message.startswith("Got unexpected extra argument"):
        extra = error.message.rpartition("(")[2].rstrip(".").removesuffix(")")
        return f"unexpected argument{'s' * (' ' in extra)} {extra}"
    hint = getattr(error, "param_hint", None)
    return f"{hint}: {error.message}" if hint else str(error.message)


def _values(message: str) -> str:
    """Return how many values an option needs, from a message such as `Option '-x' requires 2 arguments`."""
    if "requires" not in message:
        return "takes no value"
    return next((f"needs {word} values" for word in message.split() if word.isdecimal()), "needs a value")


def _name(parameter: Any) -> str:  # noqa: ANN401
    """Return the longest name of an option, or an argument's placeholder."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return str(max(parameter.opts, key=len))


def _expected(parameter: Any, message: str) -> str:  # noqa: ANN401
    """Describe what a parameter accepts, in words, or in the framework's message if its type does not tell."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if get_origin(annotation) is list:  # an option that may be given several times
        (annotation,) = get_args(annotation)
    choices = get_args(annotation) or tuple(getattr(annotation, "__members__", {}).values())
    if choices and all(isinstance(choice, str) for choice in choices):
        return f"one of {', '.join(map(str, choices))}"
    if annotation not in NUMBERS:
        return f"valid ({message.rstrip('.')})"
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if least is not None and most is not None:
        return f"{NUMBERS[annotation]} from {least:g} to {most:g}"
    bound = f" of at least {least:g}" if least is not None else f" of at most {most:g}" if most is not None else ""
    return NUMBERS[annotation] + bound


def _found(parameter: Any, arguments: Sequence[str]) -> str:  # noqa: ANN401
    """Return the last value of an option on the command line, as `, found 'x'`; empty if it is unknown."""
    found = ""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in parameter.opts:
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            found = f", found '{value if equals else following}'"
    return found
