"""The scores of a run, as JSON and as tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffseg.engines.files import atomic_file
from diffseg.engines.packages import installed_version
from diffseg.measure.evaluate.columns import Column
from diffseg.measure.evaluate.methods import EXPLANATIONS, Method
from diffseg.measure.evaluate.scores import Score, score
from diffseg.measure.overlap import covering

if TYPE_CHECKING:
    from diffseg.measure.evaluate.datasets import Dataset
    from diffseg.measure.evaluate.run import Evaluation
    from rich.console import Console

SHOWN = 3
"""Number of best, median and worst images on the page."""

MEASURES = {
    "accuracy": "ACC",
    "miou": "mIoU",
    "image_miou": "per image",
    "covering": "cover",
    "rand": "ARI",
    "boundary": "F 2px",
}
MEANINGS = {
    "accuracy": "pixel accuracy after Hungarian matching, image by image, as in the paper",
    "miou": "mean IoU over classes, TP, FP and FN summed over the set, as in the paper; depends on the numbering",
    "image_miou": "mean over images of the mean IoU over the image's own classes",
    "covering": "segmentation covering, mean over images",
    "rand": "adjusted Rand index, mean over images",
    "boundary": "boundary F-score at 2 px, mean over images",
}
ORDER_NOTE = (
    "ACC and mIoU are the measures of the paper. Its mIoU depends on the numbering of the masks, because unmatched "
    "masks are counted for classes that are not in the image, by number. The range is for other numberings of the "
    "same masks. The other columns do not depend on the numbering."
)
SWEEP_NOTE = "The best threshold of a sweep was chosen on the same images, so its scores are optimistic."
PUBLISHED_NOTE = (
    "Published figures, not measured here. Compare them only with a run on COCO-Stuff-27 (val2017, curated list) "
    "with --protocol paper and the weights of Stable Diffusion."
)
PUBLISHED: tuple[tuple[str, float | None, float], ...] = (  # COCO-Stuff-27: method, ACC, mIoU, in percent
    ("IIC", 21.8, 6.7),
    ("MDC", 32.3, 9.8),
    ("PiCIE", 48.1, 13.8),
    ("PiCIE+H", 50.0, 14.4),
    ("STEGO", 56.9, 28.2),
    ("ACSeg", None, 28.1),
    ("MaskCLIP", 32.2, 19.6),
    ("ReCo", 46.1, 26.3),
    ("K-Means-C", 58.9, 33.7),
    ("K-Means-S", 62.6, 34.7),
    ("DiffSeg-320", 72.5, 43.0),
    ("DiffSeg-512", 72.5, 43.6),
)


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """Scores of all columns on one data set.

    Attributes:
        name: name of the data set.
        layout: layout on disk.
        note: origin of its images and classes.
        images: number of images, after `--limit`.
        failed: number of images that could not be evaluated.
        classes: names of the classes, or `class 0`, … if they have none.
        scores: scores by column.
        examples: names of the worst, median and best images by the first column's covering.
    """

    name: str
    layout: str
    note: str
    images: int
    failed: int
    classes: tuple[str, ...]
    scores: dict[str, Score]
    examples: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Report:
    """All results of a run.

    Attributes:
        diffseg: version of the package.
        model: name of the bundle, and the hashes of its graphs; empty if no method needed it.
        provider: the provider that executed it.
        protocol: `paper`, `diffcut` or `full`.
        methods: explanation of each method.
        columns: names of the main columns: each method with its settings.
        sweep: columns of the threshold sweep, by increasing threshold; they include the main column.
        datasets: reports of the data sets, in the order in which they were given.
        published: method, accuracy, mIoU in percent; see `PUBLISHED_NOTE`.
    """

    diffseg: str
    model: dict[str, str]
    provider: str | None
    protocol: str
    methods: dict[str, str]
    columns: tuple[str, ...]
    sweep: tuple[str, ...]
    datasets: tuple[DatasetReport, ...]
    published: tuple[tuple[str, float | None, float], ...] = PUBLISHED

    def best(self) -> str | None:
        """Return the column of the sweep with the largest mean covering over the data sets; None without a sweep."""
        means = {name: sum(dataset.scores[name].covering or 0.0 for dataset in self.datasets) for name in self.sweep}
        return max(means, key=lambda name: means[name]) if len(means) > 1 else None

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Its folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_report(evaluation: Evaluation) -> Report:
    """Summarise a run. Images that failed or were not evaluated count as failed."""
    segmenter = evaluation.segmenter
    columns = evaluation.columns
    sweep = sorted(
        (c for c in columns if c.method is Method.DIFFSEG), key=lambda c: c.settings.thresholds if c.settings else ()
    )
    return Report(
        diffseg=installed_version("diffseg") or "unknown",
        model={} if segmenter is None else {"name": segmenter.bundle.manifest.name, **evaluation.graphs},
        provider=None if segmenter is None else segmenter.provider,
        protocol=evaluation.protocol.value,
        methods={method.value: EXPLANATIONS[method] for method in dict.fromkeys(c.method for c in columns)},
        columns=tuple(column.name for column in columns if column.default),
        sweep=() if all(column.default for column in sweep) else tuple(column.name for column in sweep),
        datasets=tuple(_dataset_report(evaluation, dataset, columns) for dataset in evaluation.datasets),
    )


def _dataset_report(evaluation: Evaluation, dataset: Dataset, columns: Sequence[Column]) -> DatasetReport:
    records = {column.name: evaluation.records(dataset, column) for column in columns}
    first = records[columns[0].name]
    occurring = max((c for record in first for c in record.overlap.classes), default=-1) + 1
    classes = dataset.classes or tuple(f"class {i}" for i in range(occurring))
    return DatasetReport(
        name=dataset.name,
        layout=dataset.layout.value,
        note=dataset.note,
        images=len(dataset.samples),
        failed=len(dataset.samples) - len(first),
        classes=classes,
        scores={name: score(found, len(classes)) for name, found in records.items()},
        examples=_examples([(covering(record.overlap), record.image) for record in first]),
    )


def _examples(ranked: list[tuple[float, str]]) -> dict[str, tuple[str, ...]]:
    """Return the best, median and worst images. No image appears twice."""
    names = [name for _, name in sorted(ranked, key=lambda pair: (-pair[0], pair[1]))]
    shown = min(SHOWN, len(names) // 3) or min(1, len(names))
    middle = (len(names) - shown) // 2
    groups = {"best": names[:shown], "median": names[middle : middle + shown], "worst": names[len(names) - shown :]}
    seen: set[str] = set()
    result = {}
    for group, members in groups.items():
        result[group] = tuple(name for name in members if name not in seen)
        seen.update(members)
    return result


def print_report(report: Report, console: Console) -> None:
    """Print the tables."""
    from rich.table import Table

    table = Table("method", *MEASURES.values(), "mIoU range", "masks", box=None, pad_edge=False)
    for dataset in report.datasets:
        table.add_row(f"{dataset.name} ({dataset.images - dataset.failed})", style="bold")
        for name in report.columns:
            table.add_row(name, *row(dataset.scores[name]))
    console.print(table)
    if report.sweep:
        best = report.best()
        sweep = Table("threshold", *(dataset.name for dataset in report.datasets), box=None, pad_edge=False)
        sweep.add_row("", *("cover mIoU  masks" for _ in report.datasets), style="dim")
        for name in report.sweep:
            scores = [dataset.scores[name] for dataset in report.datasets]
            cells = (f"{cell(s.covering)} {cell(s.miou)} {s.masks or 0:5.1f}" for s in scores)
            sweep.add_row(name.removeprefix("diffseg ") + (" *" if name == best else ""), *cells)
        console.print()
        console.print(sweep)
        console.print(f"* largest mean covering. {SWEEP_NOTE}", style="dim")
    for dataset in report.datasets:
        console.print(f"{dataset.name}: {dataset.note}", style="dim")
    console.print(ORDER_NOTE, style="dim")


def row(score: Score) -> list[str]:
    """Return the cells of a table row: the measures, the range of mIoU and the number of masks."""
    low, high = score.miou_spread
    spread = f"{cell(low)}-{cell(high)}"
    masks = "–" if score.masks is None else f"{score.masks:.1f}"
    return [*(cell(getattr(score, measure)) for measure in MEASURES), spread, masks]


def cell(value: float | None) -> str:
    """Return a value with three decimals, or a dash for None."""
    return "–" if value is None else f"{value:.3f}"
