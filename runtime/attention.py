"""The aggregated attention of one image, and the masks derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import Array, namespace, to_host
from diffseg.image import Placement, Segment, place_labels
from diffseg.methods.colour import colour_refine
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import AnchorDistances, anchor_distances, merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffseg.stages import stage

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import MergeSettings
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class _Memo:
    """The anchor distances computed last. The tuple is replaced as a whole, so threads can share the memo."""

    last: tuple[int, AnchorDistances] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AggregatedAttention:
    """The aggregated attention of one image, with everything that is needed to make masks. Threads can share it.

    It remembers the distances of its maps from the anchors that were used last. Merging with the same anchors and new
    thresholds therefore takes a third of the time of the first merging.

    Attributes:
        values: (n, n, n, n) float32, queries then keys; every map sums to 1. A NumPy or CuPy array.
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
    """

    values: Array
    pixels: NDArray[np.uint8]
    placement: Placement
    _memo: _Memo = field(default_factory=_Memo, repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the attention and the remembered distances, in bytes."""
        last = self._memo.last
        return int(self.values.nbytes) + (0 if last is None else int(last[1].values.nbytes))

    def copy(self) -> AggregatedAttention:
        """Return a copy whose values the network cannot overwrite. They stay in the same array library and device."""
        values = namespace(self.values).asarray(self.values, copy=True)
        return AggregatedAttention(values, self.pixels, self.placement, _Memo(self._memo.last))

    def placed(self, placement: Placement) -> AggregatedAttention:
        """Return the same attention for masks of another size. The arrays are shared, not copied."""
        return AggregatedAttention(self.values, self.pixels, placement, self._memo)

    def proposals(self, settings: MergeSettings) -> Array:
        """Merge the attention maps into (k, n, n) float32 proposals, without refinement; see `merge_attention`."""
        last = self._memo.last
        if last is None or last[0] != settings.anchors:
            last = settings.anchors, anchor_distances(self.values, settings.anchors)
            self._memo.last = last
        return merge_attention(self.values, settings.thresholds, settings.anchors, distances=last[1])

    def masks(
        self, settings: MergeSettings, timings: dict[str, float]
    ) -> tuple[NDArray[np.uint16], tuple[Segment, ...]]:
        """Merge the attention into masks.

        Args:
            settings: thresholds, anchors and refinement.
            timings: the duration of each stage, in seconds, is added to this dict.

        Returns:
            (H, W) uint16 labels from 0 to k-1 without gaps, at the size of the image, and one segment per label,
            largest first.
        """
        with stage(timings, "merge"):
            proposals = self.proposals(settings)
        if settings.refine == "kmeans":
            with stage(timings, "refine"):
                proposals = kmeans_refine(self.values, proposals)
        with stage(timings, "suppress"):
            labels = to_host(non_max_suppression(proposals, self.placement.size))
            if settings.refine != "colour":
                return place_labels(labels, self.placement)
        with stage(timings, "refine"):
            return place_labels(colour_refine(labels, self.pixels), self.placement)
