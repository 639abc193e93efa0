"""The masks of every column for one image, from one pass of the network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import to_host
from diffseg.features import EncoderFeatures
from diffseg.labels import place_labels
from diffseg.measure.evaluate.columns import Column
from diffseg.measure.evaluate.matching import merge_background
from diffseg.measure.evaluate.methods import (
    CONSTANT_CLUSTERS,
    Method,
    kmeans_attention,
    kmeans_colour,
    merge_superpixels,
)
from diffseg.measure.evaluate.protocol import Protocol, resize_channels, resize_nearest
from diffseg.measure.overlap import VOID
from diffseg.methods.assign import assign_concepts
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.pamr import median_filter, pamr_refine
from diffseg.methods.suppress import non_max_suppression
from diffseg.segmentation import Segmentation

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import MergeSettings
    from diffseg.segmenter import Segmenter
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Predictor:
    """Makes masks as a protocol requires.

    Attributes:
        segmenter: the segmenter for methods that need a network; None if there are none.
        protocol: the protocol.
    """

    segmenter: Segmenter | None
    protocol: Protocol

    def __call__(
        self, image: Image.Image, truth: NDArray[np.uint8], columns: list[Column], background: int | None = None
    ) -> Iterator[tuple[Column, NDArray[np.integer], float]]:
        """Yield each column with its masks (H, W), of the size of `truth`, and the seconds that making them took.

        Args:
            image: the image, prepared by the protocol.
            truth: its classes (H, W).
            columns: what to yield.
            background: class of the background, for a protocol that matches it to many masks; None if there is none.
        """
        result: Segmentation | None = None
        if self.segmenter is not None and any(column.method.needs_network for column in columns):
            # Only the attention or the features are used. With these settings their first masks take the least time.
            result = self.segmenter(image, threshold=float("inf"), tau=0.0, refine="none", keep_attention=True)
        classes = len(np.unique(truth[truth != VOID]))
        for column in columns:
            start = time.perf_counter()
            labels = resize_nearest(self._masks(column, image, result, classes), truth.shape)
            if self.protocol is Protocol.DIFFCUT:
                if background is not None:
                    labels = merge_background(labels, truth, background)
                if column.settings is not None and column.settings.refine == "pamr":
                    labels = refine_small(labels, image)
            yield column, labels, round(time.perf_counter() - start, 4)

    def _masks(
        self, column: Column, image: Image.Image, result: Segmentation | None, classes: int
    ) -> NDArray[np.integer]:
        if column.method is Method.COLOUR:
            return kmeans_colour(image)
        if column.method is Method.SUPERPIXELS:
            return merge_superpixels(image)
        assert result is not None  # noqa: S101 - Evaluation checked it
        if column.settings is not None:
            return self._segmented(column.settings, result)
        clusters = CONSTANT_CLUSTERS if column.method is Method.KMEANS_C else classes
        attention = result.kept_attention()
        coarse = kmeans_attention(to_host(attention.values), clusters)
        if self.protocol.size is not None:
            return resize_nearest(coarse, self.protocol.size)
        return place_labels(resize_nearest(coarse, attention.placement.size).astype(np.uint16), attention.placement)[0]

    def _segmented(self, settings: MergeSettings, result: Segmentation) -> NDArray[np.integer]:
        """Make the masks of `diffseg`, `cut` or `diffcut`."""
        size = self.protocol.size
        if size is None:
            return result.with_settings(settings).labels
        # Only the steps of the paper. Proposals that win no pixel keep their numbers, as in the reference code, where
        # they take part in the matching.
        kept = result.attention
        if isinstance(kept, EncoderFeatures):
            return np.asarray(to_host(assign_concepts(kept.values, kept.regions(settings.tau), size)))
        attention = result.kept_attention()
        proposals = attention.proposals(settings)
        if settings.refine == "kmeans":
            proposals = kmeans_refine(attention.values, proposals)
        return np.asarray(to_host(non_max_suppression(proposals, size)))


def refine_small(labels: NDArray[np.integer], image: Image.Image) -> NDArray[np.integer]:
    """Refine small masks with PAMR as DiffCut's evaluation does (its `Benchmark_Segmentation.pamr`).

    The image is resized bilinearly, without antialiasing, to the size of the masks. PAMR takes 10 iterations and
    dilations of 1, 2, 4 and 8. The masks are then numbered by their order and filtered by a median of 3 × 3 numbers.

    Args:
        labels: (H, W) masks.
        image: the image at the network's input size.
    """
    members = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint16)
    small = resize_channels(np.asarray(image), labels.shape) / np.float32(255)
    return np.asarray(median_filter(pamr_refine(members, small)))
