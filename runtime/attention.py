"""The aggregated attention of one image, and the masks that are made of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import Array, namespace, to_host
from diffseg.image import Placement, Segment, place_labels
from diffseg.methods import fused
from diffseg.methods.colour import colour_refine
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import AnchorDistances, anchor_distances, merge_on_device
from diffseg.methods.suppress import non_max_suppression
from diffseg.stages import stage

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import MergeSettings
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Memo:
    """The anchor distances that were computed last: replaced as a whole, so that threads may share them."""

    last: tuple[int, AnchorDistances] | None = None
    mended_rows: int | None = None  # once it is on the host


@dataclass(frozen=True, slots=True, eq=False)
class AggregatedAttention:
    """The aggregated attention of one image, with all that masks are made of. Threads may share it.

    It remembers the distances of its maps from the anchors that were used last, so that new thresholds cost a third
    of the first merging.

    Attributes:
        values: (n, n, n, n) float32, queries then keys; every map sums to 1. NumPy's or CuPy's array.
        pixels: (h, w, 3) uint8, the image as the network saw it.
        placement: where these pixels lie in the image.
        mended: () integer, in the library of `values`: see `mended_rows`.
    """

    values: Array
    pixels: NDArray[np.uint8]
    placement: Placement
    mended: Array | int = 0
    _memo: _Memo = field(default_factory=_Memo, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the attention and of the remembered distances."""
        last = self._memo.last
        return int(self.values.nbytes) + (0 if last is None else int(last[1].values.nbytes))

    @property
    def mended_rows(self) -> int:
        """Rows of the network's attention, over all resolutions, that were not distributions and had to be mended.

        Any number but 0 means that the network computed NaN, infinities or negative probabilities. The first access
        may wait for the device.
        """
        if self._memo.mended_rows is None:
            self._memo.mended_rows = int(self.mended)
        return self._memo.mended_rows

    def copy(self) -> AggregatedAttention:
        """Copy the values, within their own library: those of a network are overwritten by its next pass."""
        values = namespace(self.values).asarray(self.values, copy=True)
        memo = _Memo(self._memo.last, self._memo.mended_rows)
        return AggregatedAttention(values, self.pixels, self.placement, self.mended, memo)

    def placed(self, placement: Placement) -> AggregatedAttention:
        """Return the same attention, with its memory shared, for masks of another size."""
        return AggregatedAttention(self.values, self.pixels, placement, self.mended, self._memo)

    def proposals(self, settings: MergeSettings) -> Array:
        """Merge the attention maps → (k, n, n) float32 proposals, see `merge_attention`; without any refinement."""
        proposals, count = self._merge(settings)
        return proposals if count is None else proposals[: int(count), ...]

    def _merge(self, settings: MergeSettings) -> tuple[Array, Array | None]:
        """Proposals, and their number on the device or None: see `merge_on_device`."""
        last = self._memo.last
        if last is None or last[0] != settings.anchors:
            last = settings.anchors, anchor_distances(self.values, settings.anchors, clean=True)
            self._memo.last = last
        return merge_on_device(self.values, settings.thresholds, settings.anchors, distances=last[1])

    def _suppress(self, proposals: Array, count: Array | None) -> NDArray[np.uint16]:
        """Labels on the host. With the fused kernels, this copy is the only wait for the device in an image's way."""
        kernels = fused.kernels(proposals)
        if kernels is None or count is None:
            return to_host(non_max_suppression(proposals, self.placement.size))
        packed = to_host(kernels.suppress(proposals, count, self.mended, self.placement.size))
        self._memo.mended_rows = int(packed[-2]) + (int(packed[-1]) << 16)
        return packed[:-2].reshape(self.placement.size)

    def masks(
        self, settings: MergeSettings, timings: dict[str, float]
    ) -> tuple[NDArray[np.uint16], tuple[Segment, ...]]:
        """Make masks.

        Args:
            settings: thresholds, anchors and refinement.
            timings: the seconds of each stage are added here.

        Returns:
            (H, W) uint16 labels from 0 to k-1 without gaps, at the size of the image, and their segments, largest
            first.
        """
        with stage(timings, "merge"):
            proposals, count = self._merge(settings)
        if settings.refine == "kmeans":
            with stage(timings, "refine"):
                known = proposals if count is None else proposals[: int(count), ...]
                proposals, count = kmeans_refine(self.values, known), None
        with stage(timings, "suppress"):
            labels = self._suppress(proposals, count)
            if settings.refine != "colour":
                return place_labels(labels, self.placement)
        with stage(timings, "refine"):
            return place_labels(colour_refine(labels, self.pixels), self.placement)


def warn_of_mended_rows(attentions: Sequence[AggregatedAttention]) -> None:
    """Log one warning for a batch if rows of its attention were not distributions."""
    spoilt = [attention.mended_rows for attention in attentions if attention.mended_rows]
    if spoilt:
        logger.warning(
            "the network computed NaN, infinite or negative attention in %d row%s of %d image%s, whose masks may be "
            "wrong; use another provider, or export the bundle with another precision",
            sum(spoilt),
            "" if sum(spoilt) == 1 else "s",
            len(spoilt),
            "" if len(spoilt) == 1 else "s",
        )
