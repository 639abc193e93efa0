"""Choose a mask of one image by points, within milliseconds and without the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from diffseg.annotation.parts import label_parts
from diffseg.arrays import resize_last, to_host
from diffseg.image import ImageSource
from diffseg.placement import Placement
from diffseg.segmenter import Segmenter
from msgspec import structs

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import MergeSettings
    from diffseg.segmentation import Segmentation
    from numpy.typing import NDArray

Point: TypeAlias = tuple[float, float]
"""x and y in pixels of the image."""

FINER = 0.5
"""Threshold of the maps that divide a mask, relative to the threshold of the masks."""
NEARER = 1e-6
"""Weight of the distance in the image, which decides between points whose attention is the same."""


@dataclass(frozen=True, slots=True, eq=False)
class PickableMasks:
    """The masks of one image, with what is needed to divide them further: about 1 MB, in place of 67 MB of attention.

    The distance of two places of the image is the L1 distance of their shares: how much of the attention that they
    receive comes from each of the finely merged maps. It is 0 for two places of the same object and at most 2.

    Attributes:
        labels: (h, w) uint16, the masks at the size of the image, or at the network's input size if that is smaller.
        shares: (n, n, k) float32, the share of each of the k finely merged maps at each place; they sum to 1.
        placement: which part of the image the masks show.
    """

    labels: NDArray[np.uint16]
    shares: NDArray[np.float32]
    placement: Placement

    @classmethod
    def of(cls, segmenter: Segmenter, image: ImageSource, settings: MergeSettings) -> PickableMasks:
        """Segment an image, and merge its attention a second time with finer thresholds. The attention is not kept.

        Args:
            segmenter: its bundle must have attention, not the features of DiffCut.
            image: see `diffseg.image.read_image`.
            settings: thresholds, anchors and refinement of the masks.

        Raises:
            ImageError: the image cannot be read.
            ValueError: the bundle was exported for DiffCut.
        """
        prepared = segmenter.prepare(image, settings, keep_attention=True)
        placement = prepared.placement
        size = min(placement.image_size, placement.size, key=math.prod)
        if size == placement.image_size:
            placement = Placement(size, size, 0, 0, *size)  # the labels have the pixels of the image
        else:
            prepared = replace(prepared, placement=Placement(size, size, 0, 0, *size))
        (result,) = segmenter.finish([prepared])
        return cls(result.labels, _shares(result, settings), placement)

    @classmethod
    def of_result(cls, result: Segmentation, settings: MergeSettings) -> PickableMasks:
        """Take the masks of an image at its own size, which need 2 bytes per pixel.

        Args:
            result: of the whole image (`fit="stretch"`), with its attention.
            settings: of the masks.

        Raises:
            ValueError: the attention was not kept, or comes from a bundle for DiffCut.
        """
        size = result.labels.shape
        return cls(result.labels, _shares(result, settings), Placement(size, size, 0, 0, *size))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.labels.nbytes + self.shares.nbytes

    def pick(self, positive: Sequence[Point], negative: Sequence[Point] = ()) -> NDArray[np.bool_]:
        """Join the masks at the positive points, without what belongs to the negative points.

        A negative point in one of these masks takes away the connected part of the mask that it lies in. If a positive
        point lies in the same part, the part is divided: each place goes to the point at the least distance.

        Args:
            positive: points of the object. Points outside the image count as points of its border.
            negative: points that do not belong to the object.

        Returns:
            (H, W) bool, at the size of the image.
        """
        inside, outside = self._pixels(positive), self._pixels(negative)
        picked = np.zeros(self.labels.shape, dtype=bool)
        for label in {int(self.labels[pixel]) for pixel in inside}:
            mask = self.labels == label
            wanted, unwanted = ([p for p in pixels if self.labels[p] == label] for pixels in (inside, outside))
            picked |= self._without(mask, wanted, unwanted) if unwanted else mask
        return self._at_image_size(picked)

    def inside(self, left: float, top: float, right: float, bottom: float) -> NDArray[np.bool_]:
        """Join the masks that lie in a box by more than half, or take the one that fills most of it if there is none.

        Args:
            left: in pixels of the image, like the others.
            top: of the box.
            right: of the box; its sides may be exchanged.
            bottom: of the box.

        Returns:
            (H, W) bool, at the size of the image.
        """
        corners = self._pixels([(left, top), (right, bottom)])
        rows, columns = (slice(min(ends), max(ends) + 1) for ends in zip(*corners, strict=True))
        box = self.labels[rows, columns]
        held = np.bincount(box.ravel(), minlength=int(self.labels.max()) + 1)
        chosen = np.flatnonzero(2 * held > np.bincount(self.labels.ravel()))
        picked: NDArray[np.bool_] = np.isin(self.labels, chosen if chosen.size else held.argmax())
        return self._at_image_size(picked)

    def _without(
        self, mask: NDArray[np.bool_], wanted: list[tuple[int, int]], unwanted: list[tuple[int, int]]
    ) -> NDArray[np.bool_]:
        """Remove what belongs to the unwanted pixels from one mask."""
        parts = label_parts(mask)
        rest = mask
        for number in {int(parts[pixel]) for pixel in unwanted}:
            part = parts == number
            for_it, against = ([p for p in pixels if part[p]] for pixels in (wanted, unwanted))
            kept = self._divided(part, for_it, against) if for_it else np.zeros_like(part)
            rest = (rest & ~part) | kept
        return rest

    def _divided(
        self, part: NDArray[np.bool_], wanted: list[tuple[int, int]], unwanted: list[tuple[int, int]]
    ) -> NDArray[np.bool_]:
        """Divide a connected part between the wanted and the unwanted pixels, and return the share of the wanted ones.

        Pieces that contain no point go to the side that surrounds them.
        """
        kept = part & (self._distance(unwanted) > self._distance(wanted))
        for pixels, value in ((wanted, True), (unwanted, False)):
            for pixel in pixels:
                kept[pixel] = value  # two points may lie in one place of the attention
        kept = _holding(kept, wanted)
        return part & ~_holding(part & ~kept, unwanted)

    def _distance(self, pixels: list[tuple[int, int]]) -> NDArray[np.float32]:
        """Return the distance of each pixel from the nearest of some pixels: (h, w) float32."""
        (height, width), (rows, columns) = self.labels.shape, self.shares.shape[:2]
        y, x = np.arange(rows)[:, None] / rows, np.arange(columns) / columns
        least = np.full((rows, columns), np.inf, dtype=np.float32)
        for row, column in pixels:
            at = row * rows // height, column * columns // width
            distance = np.abs(self.shares - self.shares[at]).sum(2)
            distance += NEARER * np.hypot(y - at[0] / rows, x - at[1] / columns)
            np.minimum(least, distance, out=least)
        return resize_last(np.ascontiguousarray(resize_last(least, width).T), height).T  # type: ignore[no-any-return]

    def _at_image_size(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rows, columns = self.placement.indices()
        return mask.take(columns, axis=1).take(rows, axis=0)

    def _pixels(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        """Return the row and column, in the labels, of each point."""
        rows, columns = self.placement.indices()
        return [(int(rows[_within(y, len(rows))]), int(columns[_within(x, len(columns))])) for x, y in points]


def _shares(result: Segmentation, settings: MergeSettings) -> NDArray[np.float32]:
    """Return the `PickableMasks.shares` of a result: its attention is merged with finer thresholds."""
    finer = structs.replace(settings, method="diffseg", thresholds=tuple(FINER * t for t in settings.thresholds))
    maps = to_host(result.kept_attention().proposals(finer))
    shares = maps / np.maximum(maps.sum(0), np.finfo(np.float32).tiny)
    return np.ascontiguousarray(shares.transpose(1, 2, 0))


def _within(position: float, size: int) -> int:
    return min(max(int(position), 0), size - 1)


def _holding(mask: NDArray[np.bool_], pixels: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return the connected parts of a mask that hold one of the pixels."""
    parts = label_parts(mask)
    held = [int(parts[pixel]) for pixel in pixels if parts[pixel]]
    kept: NDArray[np.bool_] = np.isin(parts, held)
    return kept
