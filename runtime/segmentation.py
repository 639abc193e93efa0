"""The result for one image."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg import draw
from diffseg.attention import AggregatedAttention
from diffseg.engines.bundle.manifest import MergeSettings, Refine, Threshold
from diffseg.engines.files import atomic_file
from diffseg.image import Segment
from diffseg.stages import stage
from msgspec import structs
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTE_LABELS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The masks of one image.

    Attributes:
        labels: (H, W) uint16, 0 to k-1 without gaps, at the size of the upright image.
        segments: one per label, largest first.
        timings: seconds per stage; the network's time for a batch is divided evenly among its images.
        image: the decoded image, RGB.
        settings: the thresholds, anchors and refinement that were used.
        attention: the aggregated attention if it was kept, else None.
    """

    labels: NDArray[np.uint16]
    segments: tuple[Segment, ...]
    timings: dict[str, float]
    image: Image.Image
    settings: MergeSettings
    attention: AggregatedAttention | None = None

    @classmethod
    def of(
        cls,
        attention: AggregatedAttention,
        image: Image.Image,
        settings: MergeSettings,
        timings: dict[str, float],
        *,
        keep_attention: bool = False,
    ) -> Segmentation:
        """Make the masks of an image from its attention.

        Args:
            attention: the aggregated attention. If it is kept, its values are copied, because the network may
                overwrite them.
            image: the decoded image, RGB.
            settings: the thresholds, anchors and refinement.
            timings: seconds per stage so far; those of the following stages are added.
            keep_attention: keep a copy of the attention for `resegment`.
        """
        labels, segments = attention.masks(settings, timings)
        return cls(
            labels=labels,
            segments=segments,
            timings=timings,
            image=image,
            settings=settings,
            attention=attention.copy() if keep_attention else None,
        )

    def kept_attention(self) -> AggregatedAttention:
        """Return the attention that was kept.

        Raises:
            ValueError: the attention was not kept.
        """
        if self.attention is None:
            raise ValueError("resegment needs the attention: segment with keep_attention=True")
        return self.attention

    def resegment(
        self, threshold: Threshold | None = None, *, anchors: int | None = None, refine: Refine | None = None
    ) -> Segmentation:
        """Make new masks from the kept attention, without a pass through the network.

        With the same anchors as before, merging takes a third of the time.

        Raises:
            ValueError: the attention was not kept, or a setting is out of range.
        """
        attention = self.kept_attention()
        settings = self.settings.updated(threshold, anchors, refine)
        timings: dict[str, float] = {}
        labels, segments = attention.masks(settings, timings)
        return replace(self, labels=labels, segments=segments, timings=timings, settings=settings)

    def overlay(self, opacity: float = 0.5, *, outline: bool = True) -> Image.Image:
        """Return the image, RGB, with coloured masks over it.

        Args:
            opacity: opacity of the colours, 0 to 1.
            outline: draw white borders between masks.
        """
        return draw.overlay(self.image, self.labels, opacity, outline=outline)

    def label_image(self) -> Image.Image:
        """Return the labels as a greyscale image: 8-bit, or 16-bit for more than 256 labels."""
        return Image.fromarray(self.labels.astype(np.uint8) if len(self.segments) <= BYTE_LABELS else self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of the JSON file: size, segments, settings and timings."""
        height, width = self.labels.shape
        return {
            "width": width,
            "height": height,
            "segments": [asdict(segment) for segment in self.segments],
            "settings": structs.asdict(self.settings),
            "timings": self.timings,
        }

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write `<name>.labels.png` (8-bit, or 16-bit for more than 256 labels), `.overlay.png` and `.json`.

        Each file is written completely or not at all.

        Returns:
            The paths of the three files, in this order.

        Raises:
            OSError: the folder or a file cannot be written.
        """
        folder = Path(folder)
        paths = [folder / f"{name}{ending}" for ending in (".labels.png", ".overlay.png", ".json")]
        with stage(None, "write"):
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(paths[0]) as temporary:
                self.label_image().save(temporary, "PNG")
            with atomic_file(paths[1]) as temporary:
                self.overlay().save(temporary, "PNG", compress_level=1)
            with atomic_file(paths[2]) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return paths
