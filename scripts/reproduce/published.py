"""Published figures, in percent. They were not measured here."""

from __future__ import annotations

from diffseg.measure.evaluate.report import PUBLISHED

Figure = tuple[float | None, float | None]
"""Pixel accuracy and mIoU; None where no figure is given."""

DIFFSEG: dict[tuple[str, str], Figure] = {
    ("coco-stuff", method): (accuracy, miou)
    for method, accuracy, miou in PUBLISHED
    if method in ("K-Means-C", "K-Means-S", "DiffSeg-320", "DiffSeg-512")
}
"""Rows of arXiv 2308.12469 by data set and method. Those of Cityscapes could not be checked, and are left out."""

DIFFCUT: dict[tuple[str, str], Figure] = {
    ("voc", "DiffCut + PAMR"): (None, 57.5),
    ("cityscapes", "DiffCut + PAMR"): (None, 24.5),
    ("coco-object", "DiffCut + PAMR"): (None, 30.0),
    ("coco-stuff", "DiffCut + PAMR"): (None, 45.2),
    ("ade20k", "DiffCut + PAMR"): (None, 36.7),
    ("voc", "DiffSeg-512 + PAMR"): (None, 49.8),
    ("cityscapes", "DiffSeg-512 + PAMR"): (None, 16.8),
    ("coco-object", "DiffSeg-512 + PAMR"): (None, 23.2),
    ("coco-stuff", "DiffSeg-512 + PAMR"): (None, 44.2),
    ("ade20k", "DiffSeg-512 + PAMR"): (None, 37.7),
}
"""Rows of arXiv 2406.02842 for Stable Diffusion 1.4. Pascal Context and rows without PAMR are left out."""
