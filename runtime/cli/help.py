"""How commands read and describe their parameters: placeholders and ranges in words, and a start without pydantic."""

from __future__ import annotations

from contextlib import suppress
from enum import EnumType
from pathlib import Path
from typing import Any, get_args

from diffseg.cli.usage import Commands
from typer.core import TyperCommand

PLACEHOLDERS = {"int": "N", "float": "NUMBER", "str": "TEXT", "path": "PATH"}


class Command(TyperCommand):
    """A command whose help shows placeholders such as `IMAGE...`."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - its class depends on the version of Typer
        """Return the parameters, with placeholders."""
        return describe(super().get_params(ctx), ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Return the words of the usage line that follow the command's name."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_usage, arguments)]


class Group(Commands):
    """The group of all commands, with the same help for its own options."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401
        """Return the parameters, with placeholders."""
        return describe(super().get_params(ctx), ctx)


class Values:
    """Converts the values of a parameter. Typer, which imports pydantic for 0.1 s, only sees values that it rejects.

    Args:
        typers: returns Typer's own converter.
    """

    def __init__(self, typers: Any) -> None:  # noqa: ANN401 - Typer's classes depend on its version
        self._typers = typers

    def itself(self) -> Values:
        """Return the converter."""
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401
        """Return a value of the parameter's type. Typer rejects others, with its own errors."""
        kind, several = param.type_descriptor.annotation, param.multiple or param.nargs != 1
        if several and value and kind == list[str]:
            return list(value)
        if not several and (value is None or value is param.default or kind is str or value in get_args(kind)):
            return value
        if not several and (kind is Path or (isinstance(kind, EnumType) and value in list(kind))):
            return kind(value)
        if not several and kind in (int, float):
            with suppress(ValueError):
                number = kind(value)
                least, most = getattr(param, "min", None), getattr(param, "max", None)
                if (least is None or number >= least) and (most is None or number <= most):
                    return number
        return self._typers().coerce(value, param=param, ctx=ctx)


def describe(parameters: list[Any], context: Any) -> list[Any]:  # noqa: ANN401
    """Set the placeholders of parameters that have none, and how values are converted; return the parameters."""
    for parameter in parameters:
        if hasattr(parameter, "get_runtime_param") and "get_runtime_param" not in vars(parameter):  # not in old Typers
            parameter.get_runtime_param = Values(parameter.get_runtime_param).itself
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.metavar or parameter.name.upper()
            parameter.display_type_rich = lambda ctx: ""  # noqa: ARG005 - the placeholder states the type
        elif parameter.metavar is None and hasattr(parameter, "display_type"):
            parameter.metavar = "" if parameter.is_flag else _placeholder(parameter, context)
            parameter._get_number_range_help_str = lambda: None  # noqa: SLF001 - the placeholder states the range
    return parameters


def _placeholder(parameter: Any, context: Any) -> str:  # noqa: ANN401
    """Return `N (at least 1)` for a number, `PATH` for a path, `a|b` for a choice."""
    kind = str(parameter.display_type(context)).strip("<>")
    kind = kind.removeprefix("list[").removesuffix("]") if kind.startswith("list[") else kind  # may be repeated
    name, _, ranged = kind.partition(" ")
    placeholder = PLACEHOLDERS.get(name, kind)
    if not ranged:
        return placeholder
    least, most = parameter.min, parameter.max
    if most is None:
        return f"{placeholder} (at least {least:g})"
    return f"{placeholder} (at most {most:g})" if least is None else f"{placeholder} ({least:g} to {most:g})"


def _usage(argument: Any) -> str:  # noqa: ANN401
    """Return `IMAGE`, or `IMAGE...` for one or more; in brackets if the argument is optional."""
    words = f"{argument.metavar}{'...' * (argument.nargs != 1)}"
    return words if argument.required else f"[{words}]"
