"""Compute the scores of one method on one data set from the records of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffseg.measure.evaluate.matching import Matches, match_classes
from diffseg.measure.evaluate.results import Record
from diffseg.measure.overlap import adjusted_rand, covering, image_iou

SHUFFLES = 4
"""Number of random numberings of the masks for the spread of mIoU."""


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one method on one data set. Shares are between 0 and 1; None if there is nothing to measure.

    Attributes:
        images: number of images that were evaluated.
        accuracy: pixel accuracy after matching image by image, as in the paper.
        miou: mean over the classes, with TP, FP and FN summed over the images, as in the paper.
        miou_spread: smallest and largest mIoU over this and some random numberings of the same masks.
        image_miou: mean over the images of the mean IoU over the image's own classes.
        covering: mean segmentation covering.
        covering_error: standard error of that mean.
        rand: mean adjusted Rand index; a negative value is worse than chance.
        boundary: mean boundary F-score at 2 pixels.
        masks: mean number of masks per image.
        seconds: mean seconds per image, without the network's pass.
        class_iou: IoU of each class of the data set.
    """

    images: int
    accuracy: float | None
    miou: float | None
    miou_spread: tuple[float | None, float | None]
    image_miou: float | None
    covering: float | None
    covering_error: float | None
    rand: float | None
    boundary: float | None
    masks: float | None
    seconds: float | None
    class_iou: tuple[float | None, ...]


def score(records: Sequence[Record], classes: int) -> Score:
    """Compute the scores from the records of one method on a data set with this number of classes."""
    nothing = Matches.none(classes)
    matches = sum((match_classes(record.overlap, classes) for record in records), nothing)
    numberings = [matches.mean_iou(), *(_shuffled(records, classes, seed).mean_iou() for seed in range(SHUFFLES))]
    cover = np.array([covering(record.overlap) for record in records])
    return Score(
        images=len(records),
        accuracy=_number(matches.accuracy()),
        miou=_number(matches.mean_iou()),
        miou_spread=(_number(min(numberings)), _number(max(numberings))),
        image_miou=_mean([image_iou(record.overlap) for record in records]),
        covering=_mean(cover),
        covering_error=_number(float(cover.std(ddof=1) / len(cover) ** 0.5)) if len(cover) > 1 else None,
        rand=_mean([adjusted_rand(record.overlap) for record in records]),
        boundary=_mean([record.boundary.f_score() for record in records]),
        masks=_mean([record.overlap.masks for record in records]),
        seconds=_mean([record.seconds for record in records]),
        class_iou=tuple(_number(float(iou)) for iou in matches.iou()),
    )


def _shuffled(records: Sequence[Record], classes: int, seed: int) -> Matches:
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(record.overlap.table.shape[1]) for record in records)
    pairs = zip(records, orders, strict=True)
    return sum((match_classes(record.overlap, classes, order) for record, order in pairs), Matches.none(classes))


def _mean(values: Sequence[float] | np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float | None:
    return _number(float(np.mean(values))) if len(values) else None


def _number(value: float) -> float | None:
    """Round to six decimals. NaN becomes None, because JSON has no NaN."""
    return round(value, 6) if np.isfinite(value) else None
