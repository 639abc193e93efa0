"""The encoder features of one image, and the masks derived from them (DiffCut)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.arrays import Array, namespace, to_host
from diffseg.labels import Masks
from diffseg.masks import View, finished_masks, plain_masks
from diffseg.methods.assign import concept_scores
from diffseg.methods.cut import CutTree, normalized
from diffseg.placement import Placement
from diffseg.stages import stage

if TYPE_CHECKING:
    import numpy as np
    from diffseg.engines.bundle.settings import MergeSettings
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class _Memo:
    """The tree of cuts, once it was built. Threads can share the memo."""

    tree: CutTree | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncoderFeatures:
    """The features of one image, with everything that is needed to make masks.

    It remembers the tree of cuts, so masks for a new `tau` solve no eigenproblem twice.

    Attributes:
        values: (n², C) float32, one row per place in row-major order. A NumPy or CuPy array.
        grid: rows and columns of the places.
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
        guide: (H, W, 3) uint8, the image at a higher resolution; see `View`.
    """

    values: Array
    grid: tuple[int, int]
    pixels: NDArray[np.uint8]
    placement: Placement
    guide: NDArray[np.uint8] | None = None
    _memo: _Memo = field(default_factory=_Memo, repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the features, the guide and the remembered graph, in bytes."""
        tree = self._memo.tree
        guide = 0 if self.guide is None else self.guide.nbytes
        return int(self.values.nbytes) + guide + (0 if tree is None else int(tree.affinity.nbytes))

    def copy(self) -> EncoderFeatures:
        """Return a copy whose values the network cannot overwrite. They stay in the same array library and device."""
        values = namespace(self.values).asarray(self.values, copy=True)
        return EncoderFeatures(values, self.grid, self.pixels, self.placement, self.guide, _Memo(self._memo.tree))

    def placed(self, placement: Placement) -> EncoderFeatures:
        """Return the same features for masks of another size. The arrays are shared, not copied."""
        return EncoderFeatures(self.values, self.grid, self.pixels, placement, self.guide, self._memo)

    def similarities(self, row: int, column: int) -> NDArray[np.float32]:
        """Return the cosine of the features of one place with those of all places, (rows, columns); at least 0."""
        normed = normalized(self.values)
        cosines = to_host(normed @ normed[row * self.grid[1] + column, :])
        return np.asarray(np.maximum(cosines, 0), dtype=np.float32).reshape(self.grid)

    def regions(self, tau: float) -> NDArray[np.int64]:
        """Cut the graph of the features, and return the region of each place, (rows, columns), from 0."""
        return self._tree().labels(tau).reshape(self.grid)

    def hierarchy(self, settings: MergeSettings) -> dict[str, Any]:
        """Return the divisions of the graph that lead to the regions; see `Segmentation.to_dict`."""
        labels, nodes = self._tree().hierarchy(settings.tau)
        return {"labels": labels.reshape(self.grid).tolist(), "nodes": nodes}

    def _tree(self) -> CutTree:
        tree = self._memo.tree
        if tree is None:
            tree = self._memo.tree = CutTree.of_features(self.values)
        return tree

    def masks(self, settings: MergeSettings, timings: dict[str, float]) -> Masks:
        """Cut the graph of the features into regions, and assign every pixel to one of them.

        An image of a single colour is one segment.

        Args:
            settings: tau and refinement.
            timings: the duration of each stage, in seconds, is added to this dict.

        Returns:
            (H, W) uint16 labels from 0 to k-1 without gaps, at the size of the image, and one segment per label,
            largest first.
        """
        view = View(self.pixels, self.placement, self.guide)
        plain = plain_masks(view, timings, "cut")
        if plain is not None:
            return plain
        with stage(timings, "cut"):
            regions = self.regions(settings.tau)
        with stage(timings, "suppress"):
            scores = concept_scores(self.values, regions)
        return finished_masks(scores, view, settings.refine, timings)
