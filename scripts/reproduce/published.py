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
    (dataset, f"{method} + PAMR"): (None, figure)
    for dataset, figures in {
        "voc": (57.5, 49.8),
        "context": (52.8, 48.8),
        "coco-object": (30.0, 23.2),
        "coco-stuff": (45.2, 44.2),
        "cityscapes": (24.5, 16.8),
        "ade20k": (36.7, 37.7),
    }.items()
    for method, figure in zip(("DiffCut", "DiffSeg-512"), figures, strict=True)
}
"""Rows of arXiv 2406.02842, table 7, for Stable Diffusion 1.4. The paper has rows without PAMR for SSD-1B only."""
