"""The encoder features of one image, and the masks derived from them (DiffCut)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffseg.arrays import Array, namespace, to_host
from diffseg.image import Placement
from diffseg.masks import Masks, finished_masks, plain_masks
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import CutTree
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

    They remember the tree of cuts, so masks for a new `tau` take no eigenproblem that was solved before.

    Attributes:
        values: (n², C) float32, one row per place in row-major order. A NumPy or CuPy array.
        grid: rows and columns of the places.
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
    """

    values: Array
    grid: tuple[int, int]
    pixels: NDArray[np.uint8]
    placement: Placement
    _memo: _Memo = field(default_factory=_Memo, repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the features and of the remembered graph, in bytes."""
        tree = self._memo.tree
        return int(self.values.nbytes) + (0 if tree is None else int(tree.affinity.nbytes))

    def copy(self) -> EncoderFeatures:
        """Return a copy whose values the network cannot overwrite. They stay in the same array library and device."""
        values = namespace(self.values).asarray(self.values, copy=True)
        return EncoderFeatures(values, self.grid, self.pixels, self.placement, _Memo(self._memo.tree))

    def masks(self, settings: MergeSettings, timings: dict[str, float]) -> Masks:
        """Cut the graph of the features into regions, and assign every pixel to one of them.

        An image of a single colour is one segment. Pixels are assigned at the network's input size, in blocks of rows.

        Args:
            settings: tau and refinement.
            timings: the duration of each stage, in seconds, is added to this dict.

        Returns:
            (H, W) uint16 labels from 0 to k-1 without gaps, at the size of the image, and one segment per label,
            largest first.
        """
        plain = plain_masks(self.pixels, self.placement, timings, "cut")
        if plain is not None:
            return plain
        with stage(timings, "cut"):
            tree = self._memo.tree
            if tree is None:
                tree = self._memo.tree = CutTree.of_features(self.values)
            regions = tree.labels(settings.tau).reshape(self.grid)

        def suppress() -> NDArray[np.uint16]:
            return to_host(assign_concepts(self.values, regions, self.placement.size))

        return finished_masks(suppress, self.pixels, self.placement, settings.refine, timings)
