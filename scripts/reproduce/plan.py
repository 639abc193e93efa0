"""The contents of the papers' tables: data sets, bundles, and runs of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from diffseg.engines.bundle.settings import Refine
from diffseg.measure.evaluate import Method, Protocol
from diffseg.measure.evaluate.datasets import Layout

TAU = 0.5
THRESHOLD, CITYSCAPES_THRESHOLD = 1.1, 0.9
"""Merge thresholds of google/diffseg's `benchmarks.ipynb`."""
DIFFCUT_THRESHOLD = 1.0
"""Merge threshold of DiffSeg in the table of DiffCut's authors, for all data sets (arXiv 2406.02842, section 4.1)."""


@dataclass(frozen=True, slots=True)
class DatasetKey:
    """A data set of a table.

    Attributes:
        name: short name, as in the files of the results.
        title: name in the tables.
        option: option of the command that has its folder.
        layout: its layout.
    """

    name: str
    title: str
    option: str
    layout: Layout


DATASETS = {
    key.name: key
    for key in (
        DatasetKey("voc", "Pascal VOC 2012", "voc", Layout.VOC),
        DatasetKey("context", "Pascal Context", "context", Layout.CONTEXT),
        DatasetKey("coco-object", "COCO-Object", "coco", Layout.COCO_OBJECT),
        DatasetKey("coco-stuff", "COCO-Stuff-27", "coco", Layout.COCO_STUFF),
        DatasetKey("cityscapes", "Cityscapes", "cityscapes", Layout.CITYSCAPES),
        DatasetKey("ade20k", "ADE20K", "ade20k", Layout.ADE20K),
    )
}
OPTIONS = tuple(dict.fromkeys(key.option for key in DATASETS.values()))

BUNDLES: dict[str, tuple[str, ...]] = {
    "diffseg-512": ("--method", "diffseg", "--size", "512"),
    "diffseg-320": ("--method", "diffseg", "--size", "320"),
    "diffcut": ("--method", "diffcut", "--size", "1024", "--timestep", "50", "--noise", "official"),
}
"""Options of `diffseg export` for each bundle."""


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation of a bundle on a data set.

    Attributes:
        table: `diffseg` or `diffcut`.
        bundle: key of `BUNDLES`.
        dataset: key of `DATASETS`.
        protocol: the protocol.
        rows: method and refinement of each row of the table.
        threshold: merge threshold.
    """

    table: str
    bundle: str
    dataset: str
    protocol: Protocol
    rows: dict[str, tuple[Method, Refine]]
    threshold: float

    @property
    def name(self) -> str:
        """Name of the run's report."""
        return f"{self.table}-{self.dataset}-{self.bundle}"

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods to evaluate."""
        return tuple(dict.fromkeys(method for method, _ in self.rows.values()))

    @property
    def refinements(self) -> tuple[Refine, ...]:
        """The refinements to evaluate."""
        return tuple(dict.fromkeys(refine for _, refine in self.rows.values()))


def make_plan(tables: tuple[str, ...], datasets: tuple[str, ...]) -> list[Run]:
    """Return the runs, ordered by bundle, so that each bundle is loaded once.

    Args:
        tables: `diffseg`, `diffcut`, or both.
        datasets: keys of the available data sets.
    """
    runs = []
    for name in datasets:
        threshold = CITYSCAPES_THRESHOLD if name == "cityscapes" else THRESHOLD
        if "diffseg" in tables and name in ("coco-stuff", "cityscapes"):
            rows: dict[str, tuple[Method, Refine]] = {
                "K-Means-C": (Method.KMEANS_C, "none"),
                "K-Means-S": (Method.KMEANS_S, "none"),
                "DiffSeg-512": (Method.DIFFSEG, "none"),
            }
            runs.append(Run("diffseg", "diffseg-512", name, Protocol.PAPER, rows, threshold))
            rows = {"DiffSeg-320": (Method.DIFFSEG, "none")}
            runs.append(Run("diffseg", "diffseg-320", name, Protocol.PAPER, rows, threshold))
        if "diffcut" in tables:
            rows = {"DiffSeg-512": (Method.DIFFSEG, "none"), "DiffSeg-512 + PAMR": (Method.DIFFSEG, "pamr")}
            runs.append(Run("diffcut", "diffseg-512", name, Protocol.DIFFCUT, rows, DIFFCUT_THRESHOLD))
            rows = {"DiffCut": (Method.DIFFCUT, "none"), "DiffCut + PAMR": (Method.DIFFCUT, "pamr")}
            runs.append(Run("diffcut", "diffcut", name, Protocol.DIFFCUT, rows, DIFFCUT_THRESHOLD))
    return sorted(runs, key=lambda run: list(BUNDLES).index(run.bundle))
