"""The help texts of commands, with placeholders and ranges in words instead of the framework's Python types."""

from __future__ import annotations

from typing import Any

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


def describe(parameters: list[Any], context: Any) -> list[Any]:  # noqa: ANN401
    """Set the placeholders of parameters that have none; return the parameters."""
    for parameter in parameters:
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
