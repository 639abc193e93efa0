"""The report of an evaluation as one HTML page. Requires the `reports` extra."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg import draw
from diffseg.engines.errors import DiffsegError
from diffseg.measure.evaluate.report import (
    MEANINGS,
    MEASURES,
    ORDER_NOTE,
    PUBLISHED_NOTE,
    SWEEP_NOTE,
    DatasetReport,
    Report,
    cell,
    row,
)
from diffseg.measure.overlap import VOID
from diffseg.measure.reports.templates import render
from PIL import Image

if TYPE_CHECKING:
    from diffseg.measure.evaluate.datasets import Dataset
    from diffseg.measure.evaluate.run import Evaluation, Example
    from numpy.typing import NDArray

THUMBNAIL = 300  # pixels, longer side
JPEG_QUALITY = 80
MAX_BARS = 40
"""Classes up to which bars are drawn. More bars would be too small to compare."""
COLOURS = ("#2f6fde", "#e2803a", "#3aa66b", "#9a5fc9", "#8a8f98", "#c9a227", "#2a9db0", "#b8507a")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of a table.

    Attributes:
        head: texts of the first row.
        rows: texts of the other rows.
        strong: for each of these rows, the indices of the highlighted cells.
    """

    head: list[str]
    rows: list[list[str]]
    strong: list[set[int]]


def make_page(report: Report, evaluation: Evaluation) -> str:
    """Return the HTML text of a report. The masks of the images in it are computed again.

    Raises:
        MissingPackageError: Jinja2 is not installed.
    """
    return render(
        "evaluation.html",
        report=report,
        name=report.model.get("name", "no network"),
        graphs={key: value for key, value in report.model.items() if key != "name"},
        datasets=[
            {
                "name": dataset.name,
                "images": dataset.images - dataset.failed,
                "failed": dataset.failed,
                "note": dataset.note,
                "scores": _scores(report, dataset),
                "legend": list(zip(report.columns, COLOURS, strict=False)),
                # Without class names, one number may mean different things in different images.
                "bars": _bars(report, dataset) if source.classes else [],
                "examples": _examples(dataset, source, evaluation),
            }
            for dataset, source in zip(report.datasets, evaluation.datasets, strict=True)
        ],
        sweep=_sweep(report),
        measures={MEASURES[key]: meaning for key, meaning in MEANINGS.items()},
        order_note=ORDER_NOTE,
        published={
            "note": PUBLISHED_NOTE,
            "head": ["method", "ACC %", "mIoU %"],
            "rows": [[m, "–" if a is None else f"{a:.1f}", f"{i:.1f}"] for m, a, i in report.published],
        },
    )


def _scores(report: Report, dataset: DatasetReport) -> Table:
    """Return one row per method. The largest value of each measure is highlighted."""
    scores = [dataset.scores[name] for name in report.columns]
    values = [[getattr(score, measure) for measure in MEASURES] for score in scores]
    tops = [max((v for v in column if v is not None), default=None) for column in zip(*values, strict=True)]
    rows, strong = [], []
    for name, score, figures in zip(report.columns, scores, values, strict=True):
        error = "–" if score.covering_error is None else f"±{score.covering_error:.3f}"
        rows.append([name, *row(score), error])
        strong.append(
            {i + 1 for i, (v, top) in enumerate(zip(figures, tops, strict=True)) if v is not None and v == top}
        )
    return Table(["method", *MEASURES.values(), "mIoU range", "masks", "covering ±"], rows, strong)


def _bars(report: Report, dataset: DatasetReport) -> list[tuple[str, list[tuple[str, str, float, str]]]]:
    """Return the bars of each class: method, IoU as text, length in percent, colour."""
    if len(dataset.classes) > MAX_BARS:
        return []
    lines = []
    for i, label in enumerate(dataset.classes):
        ious = [dataset.scores[name].class_iou[i] for name in report.columns]
        if any(iou is not None for iou in ious):
            bars = [
                (name, cell(iou), 100 * (iou or 0), colour)
                for name, iou, colour in zip(report.columns, ious, COLOURS, strict=False)
            ]
            lines.append((label, bars))
    return lines


def _examples(
    dataset: DatasetReport, source: Dataset, evaluation: Evaluation
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return groups of images, each with its name and its drawings or the error that prevents them."""
    samples = {sample.name: sample for sample in source.samples}
    groups = []
    for group, names in dataset.examples.items():
        examples: list[dict[str, Any]] = []
        for name in names:
            try:
                example = evaluation.example(source, samples[name], evaluation.columns[0])
            except DiffsegError as error:  # the file was removed or changed since it was evaluated
                examples.append({"name": name, "error": str(error)})
            else:
                examples.append({"name": name, "error": None, "images": _drawings(example)})
        if examples:
            groups.append((group.capitalize(), examples))
    return groups


def _drawings(example: Example) -> list[dict[str, Any]]:
    """Draw an image, its labels and its masks."""
    size = (example.truth.shape[1], example.truth.shape[0])
    image = example.image.resize(size) if example.image.size != size else example.image
    truth = draw.overlay(image, example.truth.astype(np.uint16), 0.6)
    truth.paste((0, 0, 0), mask=Image.fromarray((example.truth == VOID).astype(np.uint8) * np.uint8(255)))
    found = draw.overlay(image, _by_area(example.labels), 0.6)
    return [_thumbnail(drawing, alt) for drawing, alt in ((image, "image"), (truth, "labels"), (found, "masks"))]


def _by_area(labels: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Number masks by area, so that the large ones get the first colours."""
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), dtype=np.uint16)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(values), dtype=np.uint16)
    return np.asarray(rank[inverse.reshape(labels.shape)])


def _thumbnail(image: Image.Image, alt: str) -> dict[str, Any]:
    """Return a smaller image as JPEG in base64, its alternative text and its size in pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return {"data": data, "alt": alt, "width": small.width, "height": small.height}


def _sweep(report: Report) -> dict[str, Any] | None:
    """Return the table of the threshold sweep and its note; None without a sweep."""
    if not report.sweep:
        return None
    best = report.best()
    head = ["threshold"]
    for dataset in report.datasets:
        head += [f"{dataset.name} {measure}" for measure in ("covering", "mIoU", "boundary F", "masks")]
    rows, strong = [], []
    for name in report.sweep:
        cells = [name.removeprefix("diffseg ") + (" *" if name == best else "")]
        for dataset in report.datasets:
            score = dataset.scores[name]
            masks = "–" if score.masks is None else f"{score.masks:.1f}"
            cells += [cell(score.covering), cell(score.miou), cell(score.boundary), masks]
        rows.append(cells)
        strong.append(set(range(len(cells))) if name == best else set[int]())
    note = f"* largest mean covering over the data sets. {SWEEP_NOTE}"
    return {"head": head, "rows": rows, "strong": strong, "note": note}
