"""Segmentation quality on labelled images: data sets, protocol, measures, methods side by side, report.

Importable without the extra `eval`; what needs scipy, scikit-learn or scikit-image imports it where it is used.
"""

from diffseg.runtime.evaluation.datasets import Dataset, Layout, Sample, open_datasets
from diffseg.runtime.evaluation.methods import Column, Method, parse_methods, parse_thresholds
from diffseg.runtime.evaluation.protocol import Protocol
from diffseg.runtime.evaluation.report import Report, make_report
from diffseg.runtime.evaluation.run import Evaluation

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
