"""The aggregated attention of one image, and the masks derived from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.arrays import Array, namespace
from diffseg.labels import Masks
from diffseg.masks import View, finished_masks, plain_masks
from diffseg.methods.cut_attention import AttentionCut
from diffseg.methods.kmeans import kmeans_on_device
from diffseg.methods.merge import AnchorDistances, anchor_distances, merge_on_device
from diffseg.methods.suppress import Proposals
from diffseg.placement import Placement
from diffseg.stages import stage

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import MergeSettings
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Memo:
    """The results computed last. Each value is replaced as a whole, so threads can share the memo."""

    last: tuple[int, AnchorDistances] | None = None
    cut: AttentionCut | None = None
    mended_rows: int | None = None  # once it is on the host


@dataclass(frozen=True, slots=True, eq=False)
class AggregatedAttention:
    """The aggregated attention of one image, with everything that is needed to make masks. Threads can share it.

    It remembers the distances of its maps from the anchors that were used last. Merging with the same anchors and new
    thresholds therefore takes a third of the time of the first merging. It also remembers its tree of cuts, so a new
    `tau` takes milliseconds.

    Attributes:
        values: (n, n, n, n) float32, queries then keys; every map sums to 1. A NumPy or CuPy array.
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
        mended: () integer, in the library of `values`; see `mended_rows`.
        guide: (H, W, 3) uint8, the image at a higher resolution; see `View`.
    """

    values: Array
    pixels: NDArray[np.uint8]
    placement: Placement
    mended: Array | int = 0
    guide: NDArray[np.uint8] | None = None
    _memo: _Memo = field(default_factory=_Memo, repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the attention, the guide, the remembered distances and the remembered cuts, in bytes."""
        last, cut = self._memo.last, self._memo.cut
        remembered = (0 if last is None else int(last[1].values.nbytes)) + (0 if cut is None else cut.nbytes)
        return int(self.values.nbytes) + remembered + (0 if self.guide is None else self.guide.nbytes)

    @property
    def mended_rows(self) -> int:
        """Number of rows of the network's attention, over all resolutions, that were not distributions and were mended.

        A number above 0 means that the network computed NaN, infinite or negative probabilities. The first access may
        wait for the device.
        """
        if self._memo.mended_rows is None:
            self._memo.mended_rows = int(self.mended)
        return self._memo.mended_rows

    def copy(self) -> AggregatedAttention:
        """Return a copy whose values the network cannot overwrite. It uses the same array library and device."""
        values = namespace(self.values).asarray(self.values, copy=True)
        memo = _Memo(self._memo.last, self._memo.cut, self._memo.mended_rows)
        return AggregatedAttention(values, self.pixels, self.placement, self.mended, self.guide, memo)

    def placed(self, placement: Placement) -> AggregatedAttention:
        """Return the same attention for masks of another size. The arrays are shared, not copied."""
        return AggregatedAttention(self.values, self.pixels, placement, self.mended, self.guide, self._memo)

    def proposals(self, settings: MergeSettings) -> Array:
        """Return (k, n, n) float32 proposals, without refinement: merged attention maps, or means of cut regions."""
        if settings.method == "cut":
            return self._cut(settings.tau)
        proposals, count = self._merge(settings)
        return proposals if count is None else proposals[: int(count), ...]

    def _merge(self, settings: MergeSettings) -> tuple[Array, Array | None]:
        """Return the proposals, and their number on the device or None; see `merge_on_device`."""
        last = self._memo.last
        if last is None or last[0] != settings.anchors:
            last = settings.anchors, anchor_distances(self.values, settings.anchors, clean=True)
            self._memo.last = last
        return merge_on_device(self.values, settings.thresholds, settings.anchors, distances=last[1])

    def hierarchy(self, settings: MergeSettings) -> dict[str, Any]:
        """Return the divisions of the graph that lead to the regions of `cut`; see `Segmentation.to_dict`.

        Raises:
            ValueError: the method is another one.
        """
        if settings.method != "cut":
            raise ValueError(f"a hierarchy needs method 'cut' or 'diffcut', found {settings.method!r}")
        cut = self._graph()
        labels, nodes = cut.tree.hierarchy(settings.tau)
        return {"labels": labels.reshape(cut.places).tolist(), "nodes": nodes}

    def _cut(self, tau: float) -> Array:
        """Return the mean maps of the regions; see `AttentionCut`."""
        return self._graph().proposals(tau)

    def _graph(self) -> AttentionCut:
        cut = self._memo.cut
        if cut is None:
            cut = self._memo.cut = AttentionCut.of(self.values)
        return cut

    def masks(self, settings: MergeSettings, timings: dict[str, float]) -> Masks:
        """Merge or cut the attention into masks. An image of a single colour is one segment.

        Args:
            settings: method, thresholds, anchors, tau and refinement.
            timings: the duration of each stage, in seconds, is added to this dict.

        Returns:
            (H, W) uint16 labels from 0 to k-1 without gaps, at the size of the image, and one segment per label,
            largest first.
        """
        view = View(self.pixels, self.placement, self.guide)
        plain = plain_masks(view, timings, "cut" if settings.method == "cut" else "merge")
        if plain is not None:
            return plain
        if settings.method == "cut":
            with stage(timings, "cut"):
                proposals, count = self._cut(settings.tau), None
        else:
            with stage(timings, "merge"):
                proposals, count = self._merge(settings)
        if settings.refine == "kmeans":
            with stage(timings, "refine"):
                known = proposals if count is None else proposals[: int(count), ...]
                proposals, count = kmeans_on_device(self.values, known)
        found = Proposals(proposals, count, self.mended)
        masks = finished_masks(found, view, settings.refine, timings)
        if found.mended_rows is not None:
            self._memo.mended_rows = found.mended_rows
        return masks


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
