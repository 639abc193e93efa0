"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

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
from PIL import Image

if TYPE_CHECKING:
    from diffseg.measure.evaluate.datasets import Dataset
    from diffseg.measure.evaluate.run import Evaluation, Example
    from numpy.typing import NDArray

THUMBNAIL = 300  # pixels, longer side
JPEG_QUALITY = 80
MAX_BARS = 40
"""Classes up to which bars are drawn; with more they say nothing."""

COLOURS = ("#2f6fde", "#e2803a", "#3aa66b", "#9a5fc9", "#8a8f98")
STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#777}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{font-size:1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
.top{font-weight:700}.dim{color:var(--dim);font-size:.9em}
.published{border:1px dashed var(--line);padding:.2rem 1rem 1rem;margin-top:1rem}
.bars{display:grid;grid-template-columns:max-content 1fr;gap:.5rem .8rem;align-items:center;font-size:.85em}
.bars .pair{display:grid;gap:1px}
.bar{height:7px;border-radius:2px;min-width:1px}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .3em 0 1em}
.examples{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0}figure img{display:inline-block;max-width:100%;margin-right:2px}
figcaption{font-size:.85em;color:var(--dim)}
.wide{overflow-x:auto}
"""


def make_page(report: Report, evaluation: Evaluation) -> str:
    """HTML text of a report. Masks of the images that it shows are made again."""
    name = report.model.get("name", "no network")
    parts = [
        f"<h1>Segmentation quality: {escape(name)}</h1>",
        f"<p class=dim>diffseg {escape(report.diffseg)}, protocol <b>{escape(report.protocol)}</b>"
        + (f", provider {escape(report.provider)}" if report.provider else "")
        + "".join(f"<br>{escape(key)} {escape(value)}" for key, value in report.model.items() if key != "name")
        + "</p>",
        _list(report.methods),
    ]
    for dataset, source in zip(report.datasets, evaluation.datasets, strict=True):
        parts += [
            f"<h2>{escape(dataset.name)}</h2>",
            f"<p class=dim>{dataset.images - dataset.failed} images"
            + (f", {dataset.failed} failed" if dataset.failed else "")
            + f". {escape(dataset.note)}</p>",
            _scores(report, dataset),
            _bars(report, dataset) if source.classes else "",  # numbers that may mean nothing across images
            _examples(report, dataset, source, evaluation),
        ]
    parts += [_sweep(report), f"<h2>What is measured</h2>{_list({MEASURES[k]: v for k, v in MEANINGS.items()})}"]
    parts += [f"<p>{escape(ORDER_NOTE)}</p>", _published(report)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>diffseg evaluate: {escape(name)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _list(items: dict[str, str]) -> str:
    return "<ul class=dim>" + "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in items.items()) + "</ul>"


def _table(head: list[str], rows: list[tuple[list[str], set[int]]]) -> str:
    """Table from texts; the cells whose numbers are in the set are the top ones."""
    text = "".join(f"<th>{escape(h)}</th>" for h in head)
    for cells, top in rows:
        filled = (f"<td{' class=top' if i in top else ''}>{escape(c)}</td>" for i, c in enumerate(cells))
        text += "</tr><tr>" + "".join(filled)
    return f"<div class=wide><table><tr>{text}</tr></table></div>"


def _scores(report: Report, dataset: DatasetReport) -> str:
    scores = [dataset.scores[name] for name in report.columns]
    values = [[getattr(score, measure) for measure in MEASURES] for score in scores]
    tops = [max((v for v in column if v is not None), default=None) for column in zip(*values, strict=True)]
    rows = []
    for name, score, figures in zip(report.columns, scores, values, strict=True):
        top = {i + 1 for i, (v, most) in enumerate(zip(figures, tops, strict=True)) if v is not None and v == most}
        error = "–" if score.covering_error is None else f"±{score.covering_error:.3f}"
        rows.append(([name, *row(score), error], top))
    return _table(["method", *MEASURES.values(), "mIoU range", "masks", "covering ±"], rows)


def _bars(report: Report, dataset: DatasetReport) -> str:
    if len(dataset.classes) > MAX_BARS or not report.columns:
        return ""
    keys = zip(report.columns, COLOURS, strict=False)
    legend = "".join(f'<span class=key style="background:{c}"></span>{escape(n)}' for n, c in keys)
    lines = []
    for i, label in enumerate(dataset.classes):
        ious = [dataset.scores[name].class_iou[i] for name in report.columns]
        if all(iou is None for iou in ious):
            continue
        bars = "".join(
            f'<div class=bar style="width:{100 * (iou or 0):.1f}%;background:{colour}" '
            f'title="{escape(name)} {cell(iou)}"></div>'
            for name, iou, colour in zip(report.columns, ious, COLOURS, strict=False)
        )
        lines.append(f"<div>{escape(label)}</div><div class=pair>{bars}</div>")
    return f"<h3>IoU of each class (0 to 1)</h3><p class=dim>{legend}</p><div class=bars>{''.join(lines)}</div>"


def _examples(report: Report, dataset: DatasetReport, source: Dataset, evaluation: Evaluation) -> str:
    column = evaluation.columns[0]
    samples = {sample.name: sample for sample in source.samples}
    text = ""
    for group, names in dataset.examples.items():
        figures = ""
        for name in names:
            try:
                example = evaluation.example(source, samples[name], column)
            except DiffsegError as error:  # it was readable a moment ago
                figures += f"<p class=dim>{escape(str(error))}</p>"
                continue
            figures += f"<figure>{_pictures(example)}<figcaption>{escape(name)}</figcaption></figure>"
        if figures:
            text += f"<h3>{group.capitalize()} by covering</h3><div class=examples>{figures}</div>"
    return f"{text}<p class=dim>Each: image, labels, {escape(report.columns[0])}.</p>" if text else ""


def _pictures(example: Example) -> str:
    size = (example.truth.shape[1], example.truth.shape[0])
    picture = example.picture.resize(size) if example.picture.size != size else example.picture
    truth = draw.overlay(picture, example.truth.astype(np.uint16), 0.6)
    truth.paste((0, 0, 0), mask=Image.fromarray((example.truth == VOID).astype(np.uint8) * np.uint8(255)))
    found = draw.overlay(picture, _by_area(example.labels), 0.6)
    return "".join(_image(image, alt) for image, alt in ((picture, "image"), (truth, "labels"), (found, "masks")))


def _by_area(labels: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Number masks by area, so that the large ones get the first colours."""
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), dtype=np.uint16)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(values), dtype=np.uint16)
    return np.asarray(rank[inverse.reshape(labels.shape)])


def _image(image: Image.Image, alt: str) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" width="{small.width}" height="{small.height}">'


def _sweep(report: Report) -> str:
    if not report.sweep:
        return ""
    best = report.best()
    head = ["threshold"]
    for dataset in report.datasets:
        head += [f"{dataset.name} {measure}" for measure in ("covering", "mIoU", "boundary F", "masks")]
    rows = []
    for name in report.sweep:
        cells = [name.removeprefix("diffseg ") + (" *" if name == best else "")]
        for dataset in report.datasets:
            score = dataset.scores[name]
            masks = "–" if score.masks is None else f"{score.masks:.1f}"
            cells += [cell(score.covering), cell(score.miou), cell(score.boundary), masks]
        rows.append((cells, set(range(len(cells))) if name == best else set()))
    note = f"* largest mean covering over the data sets. {SWEEP_NOTE}"
    return f"<h2>Thresholds</h2>{_table(head, rows)}<p class=dim>{escape(note)}</p>"


def _published(report: Report) -> str:
    rows = [([m, "–" if a is None else f"{a:.1f}", f"{i:.1f}"], set[int]()) for m, a, i in report.published]
    table = _table(["method", "ACC %", "mIoU %"], rows)
    note = f"<p><b>{escape(PUBLISHED_NOTE)}</b></p>"
    return f"<h2>Published on COCO-Stuff-27</h2><div class=published>{note}{table}</div>"
