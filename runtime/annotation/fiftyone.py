"""A FiftyOne model whose predictions are the masks of an image. It needs the extra `fiftyone`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import fiftyone.core.labels as fol
import fiftyone.core.models as fom
import numpy as np
from diffseg.annotation.scores import mask_scores
from diffseg.annotation.segmenters import load_segmenter
from diffseg.engines.errors import ImageError

if TYPE_CHECKING:
    from diffseg.segmentation import Segmentation
    from diffseg.segmenter import Segmenter

Output = Literal["detections", "segmentation"]


class DiffSegModel(fom.Model):  # type: ignore[misc]  # FiftyOne has no types
    """Segments images for `dataset.apply_model(model, label_field="masks")`.

    Args:
        segmenter: its bundle must have attention, not the features of DiffCut.
        output: `detections` gives one `Detection` per mask, with its box, mask, score and, as `index`, its number.
            `segmentation` gives one `Segmentation`, whose values number the masks from 1, the largest first.
        label: label of all detections, because DiffSeg does not classify masks.
        threshold: merge maps closer than this KL divergence, in nats; None uses the bundle's.

    Raises:
        ValueError: an unknown output, or a negative threshold.
    """

    media_type = "image"
    transforms = None
    ragged_batches = False
    """Without transforms, images of a batch may differ in size."""
    preprocess = False
    config = None

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        output: Output = "detections",
        label: str = "segment",
        threshold: float | None = None,
    ) -> None:
        if output not in get_args(Output):
            raise ValueError(f"output must be {' or '.join(get_args(Output))}, found {output!r}")
        self.segmenter = segmenter
        self.output = output
        self.label = label
        self.settings = segmenter.settings.updated(threshold)

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny",
        *,
        provider: str = "auto",
        threads: int | None = None,
        batch: int = 1,
        **options: Any,  # noqa: ANN401
    ) -> DiffSegModel:
        """Load a bundle.

        Args:
            model: the name of an embedded model, a bundle folder, or a hub id.
            provider: see `diffseg.Segmenter.load`.
            threads: CPU threads; None uses all cores.
            batch: images per pass through the network, for `apply_model(batch_size=…)`.
            options: `output`, `label` and `threshold`.

        Raises:
            BundleError: the bundle cannot be used.
            ProviderError: the provider cannot run on this machine.
            ValueError: an argument is out of range.
        """
        return cls(load_segmenter(model, provider, threads, batch), **options)

    def predict(self, arg: Any) -> fol.Label:  # noqa: ANN401
        """Segment an image: a uint8 array (H, W, 3), or whatever `diffseg.Segmenter` takes.

        Raises:
            ImageError: the image cannot be read.
        """
        (label,) = self.predict_all([arg])
        return label

    def predict_all(self, args: Iterable[Any]) -> list[fol.Label]:
        """Segment images, which may differ in size.

        Raises:
            ImageError: an image cannot be read.
        """
        labels = []
        settings = self.settings
        for _, result in self.segmenter.stream(
            args,
            settings.thresholds,
            keep_attention=self.output == "detections",  # for the scores
        ):
            if isinstance(result, ImageError):
                raise result
            labels.append(self._detections(result) if self.output == "detections" else _segmentation(result))
        return labels

    def _detections(self, result: Segmentation) -> fol.Detections:
        height, width = result.labels.shape
        found = []
        scored = zip(result.segments, mask_scores(result).tolist(), strict=True)
        for number, (segment, score) in enumerate(scored, 1):
            left, top, box_width, box_height = segment.bbox
            mask = result.labels[top : top + box_height, left : left + box_width] == segment.label
            box = [left / width, top / height, box_width / width, box_height / height]
            found.append(fol.Detection(label=self.label, bounding_box=box, mask=mask, confidence=score, index=number))
        return fol.Detections(detections=found)


def _segmentation(result: Segmentation) -> fol.Segmentation:
    """Return the masks as one map. FiftyOne does not draw the value 0."""
    order = np.empty(len(result.segments), dtype=np.uint16)
    order[[segment.label for segment in result.segments]] = np.arange(1, len(result.segments) + 1)
    return fol.Segmentation(mask=order[result.labels])
