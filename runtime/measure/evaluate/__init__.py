"""Segmentation quality on labelled images: data sets, protocols, methods, scores and reports.

The package can be imported without the extra `eval`. scipy, scikit-learn and scikit-image are imported where they are
used. The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffseg.measure.evaluate.columns import Column
    from diffseg.measure.evaluate.datasets import Dataset, Layout, Sample
    from diffseg.measure.evaluate.layouts import open_datasets
    from diffseg.measure.evaluate.methods import (
        Method,
        methods_of,
        parse_methods,
        parse_refinements,
        parse_taus,
        parse_thresholds,
    )
    from diffseg.measure.evaluate.protocol import Protocol
    from diffseg.measure.evaluate.report import Report, make_report
    from diffseg.measure.evaluate.run import Evaluation

_MODULES = {
    "Column": "columns",
    "Dataset": "datasets",
    "Evaluation": "run",
    "Layout": "datasets",
    "Method": "methods",
    "Protocol": "protocol",
    "Report": "report",
    "Sample": "datasets",
    "make_report": "report",
    "methods_of": "methods",
    "open_datasets": "layouts",
    "parse_methods": "methods",
    "parse_refinements": "methods",
    "parse_taus": "methods",
    "parse_thresholds": "methods",
}

__all__ = [
    "Column",
    "Dataset",
    "Evaluation",
    "Layout",
    "Method",
    "Protocol",
    "Report",
    "Sample",
    "make_report",
    "methods_of",
    "open_datasets",
    "parse_methods",
    "parse_refinements",
    "parse_taus",
    "parse_thresholds",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
