"""Segmentation quality on labelled images: data sets, protocol, measures, methods side by side, report.

Importable without the extra `eval`; what needs scipy, scikit-learn or scikit-image imports it where it is used.
"""

from diffseg.measure.evaluate.datasets import Dataset, Layout, Sample, open_datasets
from diffseg.measure.evaluate.methods import Column, Method, parse_methods, parse_thresholds
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
    "open_datasets",
    "parse_methods",
    "parse_thresholds",
]
