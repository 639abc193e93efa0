"""Segmentation quality on labelled images: data sets, protocols, methods, scores and reports.

The package can be imported without the extra `eval`. scipy, scikit-learn and scikit-image are imported where they are
used.
"""

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
