"""A CVAT detection function: every mask of an image, as masks or polygons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask
from diffseg.annotation.scores import mask_scores
from diffseg.annotation.segmenters import load_segmenter
from diffseg.engines.bundle.settings import MergeSettings

if TYPE_CHECKING:
    from diffseg.segmentation import Segmentation
    from diffseg.segmenter import Segmenter
    from PIL import Image

Shape = Literal["mask", "polygon"]
LABEL = 0
"""Id of the only label: DiffSeg does not classify masks."""


@dataclass(frozen=True, slots=True)
class Detector:
    """Annotates images with all of their masks.

    Attributes:
        segmenter: segments the images.
        settings: thresholds, anchors and refinement.
        spec: the only label.
        shape: `mask` or `polygon`.
        tolerance: tolerance of polygons, in pixels.
    """

    segmenter: Segmenter
    settings: MergeSettings
    spec: Any
    shape: Shape
    tolerance: float

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[Any]:
        """Segment an image.

        Args:
            context: CVAT's request, which may ask for polygons and for a minimum confidence. The confidence of a
                mask is its score; see `diffseg.annotation.scores`.
            image: the frame to annotate.

        Returns:
            One `LabeledShapeRequest` per mask, or per part of it as a polygon. Polygons of the same mask are in one
            group. CVAT's polygons have no holes, so holes are filled.
        """
        prepared = self.segmenter.prepare(image, self.settings, keep_attention=True)
        (result,) = self.segmenter.finish([prepared])
        scores = dict(zip((segment.label for segment in result.segments), mask_scores(result).tolist(), strict=True))
        least = context.conf_threshold or 0.0
        wanted = {label: score for label, score in scores.items() if score >= least}
        if context.conv_mask_to_poly or self.shape == "polygon":
            return self._polygons(result, wanted)
        return _masks(result, wanted)

    def _polygons(self, result: Segmentation, scores: dict[int, float]) -> list[Any]:
        return [
            cvataa.polygon(
                LABEL,
                polygon.exterior.ravel().tolist(),
                group=polygon.label + 1,  # 0 is no group
                score=scores[polygon.label],
            )
            for polygon in result.polygons(self.tolerance)
            if polygon.label in scores
        ]


def _masks(result: Segmentation, scores: dict[int, float]) -> list[Any]:
    shapes = []
    for segment in result.segments:
        if segment.label in scores:
            left, top, width, height = segment.bbox
            box = [left, top, left + width, top + height]
            points = encode_mask(result.labels == segment.label, box)
            shapes.append(cvataa.mask(LABEL, points, score=scores[segment.label]))
    return shapes


def create(
    model: str = "tiny",
    provider: str = "auto",
    threads: int | None = None,
    threshold: float | None = None,
    label: str = "segment",
    shape: str = "mask",
    tolerance: float = 1.0,
) -> Detector:
    """Return the function, for `cvat-cli`.

    Args:
        model: embedded model, bundle folder or hub id.
        provider: see `diffseg.Segmenter.load`.
        threads: CPU threads; None uses all cores.
        threshold: merge maps closer than this KL divergence, in nats; None uses the bundle's.
        label: name of the label. CVAT maps it to a label of the task.
        shape: `mask`, or `polygon` for tasks whose labels are polygons.
        tolerance: tolerance of polygons, in pixels.

    Raises:
        BundleError: the bundle cannot be used.
        ProviderError: the provider cannot run on this machine.
        ValueError: an argument is out of range.
    """
    if shape not in get_args(Shape):
        raise ValueError(f"shape must be {' or '.join(get_args(Shape))}, found {shape!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 pixels, found {tolerance}")
    segmenter = load_segmenter(model, provider, threads)
    settings = segmenter.settings.updated(threshold)
    spec = cvataa.DetectionFunctionSpec(labels=[cvataa.label_spec(label, LABEL, type=shape)])
    return Detector(segmenter, settings, spec, cast("Shape", shape), tolerance)
