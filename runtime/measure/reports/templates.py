"""Fill the templates in this folder."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from diffseg.engines.errors import MissingPackageError
from diffseg.engines.packages import install_command

if TYPE_CHECKING:
    from jinja2 import Environment


def need_jinja() -> None:
    """Check that the template engine is installed. Call this before anything is measured for a report.

    Raises:
        MissingPackageError: Jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingPackageError(f"an HTML report needs jinja2: {install_command('reports')}")


def render(template: str, **values: object) -> str:
    """Fill a template. All values are escaped; a missing name is an error.

    Args:
        template: file name in this folder.
        values: the values of the template, by name.

    Raises:
        MissingPackageError: Jinja2 is not installed.
    """
    need_jinja()
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("diffseg.measure.reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
