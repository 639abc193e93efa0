"""The result for one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg import draw
from diffseg.attention import AggregatedAttention
from diffseg.engines.bundle.settings import MergeSettings, Method, Refine, Threshold
from diffseg.features import EncoderFeatures
from diffseg.formats.coco import Shape, coco_dataset
from diffseg.formats.cutouts import cutouts
from diffseg.formats.files import label_image, save
from diffseg.formats.names import DEFAULT_FORMATS, Format, parse_formats
from diffseg.formats.polygons import Polygon, polygons
from diffseg.formats.rle import Counts, compress, run_lengths
from diffseg.labels import Segment
from diffseg.origin import Origin
from diffseg.stages import stage
from msgspec import structs
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Segmentation:
    """The masks of one image.

    Attributes:
        labels: (H, W) uint16, 0 to k-1 without gaps, at the size of the upright image.
        segments: one per label, largest first.
        timings: seconds per stage; the network's time for a batch is divided evenly among its images.
        image: the decoded image, RGB.
        settings: the thresholds, anchors and refinement that were used.
        attention: the aggregated attention, or with DiffCut the features, if it was kept, else None.
        origin: where the image and the masks come from; None if it is not known, as in Triton.
        void: label of the pixels that the network does not see, with `fit="crop"`; None if it sees all of them.
    """

    labels: NDArray[np.uint16]
    segments: tuple[Segment, ...]
    timings: dict[str, float]
    image: Image.Image
    settings: MergeSettings
    attention: AggregatedAttention | EncoderFeatures | None = None
    origin: Origin | None = None
    void: int | None = None

    @classmethod
    def of(
        cls,
        attention: AggregatedAttention | EncoderFeatures,
        image: Image.Image,
        settings: MergeSettings,
        timings: dict[str, float],
        *,
        keep_attention: bool = False,
        origin: Origin | None = None,
    ) -> Segmentation:
        """Make the masks of an image from its attention.

        Args:
            attention: the aggregated attention or the features. If it is kept, its values are copied, because the
                network may overwrite them.
            image: the decoded image, RGB.
            settings: the thresholds, anchors and refinement.
            timings: seconds per stage so far; those of the following stages are added.
            keep_attention: keep a copy of the attention for `resegment`.
            origin: where the image and the masks come from.
        """
        labels, segments = attention.masks(settings, timings)
        return cls(
            labels=labels,
            segments=segments,
            timings=timings,
            image=image,
            settings=settings,
            attention=attention.copy() if keep_attention else None,
            origin=origin,
            void=_void(attention, segments),
        )

    def kept_attention(self) -> AggregatedAttention:
        """Return the attention that was kept.

        Raises:
            ValueError: the attention was not kept, or the bundle has features in its place.
        """
        attention = self._kept()
        if isinstance(attention, EncoderFeatures):
            raise ValueError(  # noqa: TRY004 - no argument has a wrong type
                "there is no attention: the bundle was exported for DiffCut, and has features in its place"
            )
        return attention

    def _kept(self) -> AggregatedAttention | EncoderFeatures:
        if self.attention is None:
            raise ValueError("resegment needs the attention: segment with keep_attention=True")
        return self.attention

    def resegment(
        self,
        threshold: Threshold | None = None,
        *,
        anchors: int | None = None,
        refine: Refine | None = None,
        method: Method | None = None,
        tau: float | None = None,
    ) -> Segmentation:
        """Make new masks from the kept attention, without a pass through the network.

        With the same anchors as before, merging takes a third of the time. The cuts of the first `tau` are kept, too.

        Raises:
            ValueError: the attention was not kept, or a setting is out of range.
        """
        self._kept()  # first of all says that nothing was kept
        return self.with_settings(self.settings.updated(threshold, anchors, refine, method, tau))

    def with_settings(self, settings: MergeSettings) -> Segmentation:
        """Make new masks from the kept attention with all these settings, as `resegment` does.

        Raises:
            ValueError: the attention was not kept.
        """
        attention = self._kept()
        timings: dict[str, float] = {}
        labels, segments = attention.masks(settings, timings)
        return replace(
            self, labels=labels, segments=segments, timings=timings, settings=settings, void=_void(attention, segments)
        )

    def overlay(self, opacity: float = 0.5, *, outline: bool = True) -> Image.Image:
        """Return the image, RGB, with coloured masks over it.

        Args:
            opacity: opacity of the colours, 0 to 1.
            outline: draw white borders between masks.
        """
        return draw.overlay(self.image, self.labels, opacity, outline=outline)

    def masks(self) -> NDArray[np.bool_]:
        """Return one mask per segment, in their order: (k, H, W) bool. They take k·H·W bytes."""
        order = np.array([segment.label for segment in self.segments], dtype=np.uint16)
        masks: NDArray[np.bool_] = self.labels[None] == order[:, None, None]
        return masks

    def polygons(self, tolerance: float = 1.0) -> tuple[Polygon, ...]:
        """Trace the outlines of the masks, with their holes; see `diffseg.formats.polygons`.

        Args:
            tolerance: largest distance of a removed corner from the simplified outline, in pixels. With 0 the polygons
                cover exactly the pixels of the masks.

        Raises:
            ValueError: the tolerance is negative.
        """
        return polygons(self.labels, self.segments, tolerance)

    def to_coco(
        self, *, image_id: int = 1, file_name: str = "", shape: Shape = "rle", tolerance: float = 1.0
    ) -> dict[str, Any]:
        """Describe the masks as a COCO data set of one image, which pycocotools reads.

        Args:
            image_id: number of the image.
            file_name: file name of the image.
            shape: `rle` for run lengths, which keep every pixel, or `polygon` for outlines, without holes.
            tolerance: tolerance of the outlines, in pixels.

        Raises:
            ValueError: an unknown shape, or a negative tolerance.
        """
        return coco_dataset(
            self.labels, self.segments, image_id=image_id, file_name=file_name, shape=shape, tolerance=tolerance
        )

    def cutouts(self) -> tuple[Image.Image, ...]:
        """Cut each mask out of the image: one RGBA image per segment, of the size of its box."""
        return cutouts(self.image, self.labels, self.segments)

    def label_image(self, *, palette: bool = False) -> Image.Image:
        """Return the labels as an image whose pixel values are the labels: 8-bit, or 16-bit for over 256 labels.

        Args:
            palette: give an 8-bit image the colours of the overlay, so that it can be looked at.
        """
        return label_image(self.labels, len(self.segments), palette=palette)

    def to_dict(self, counts: Counts = "string", *, hierarchy: bool = False) -> dict[str, Any]:
        """Return what the .json file holds: the masks as COCO run lengths, and how they were made.

        Args:
            counts: run lengths as the string that pycocotools writes, or as a list of integers.
            hierarchy: add the tree of cuts of `cut` or `diffcut`, for which the attention must be kept. Its `labels`
                are the regions on the grid of the network, before pixels were assigned to them. Its `nodes` are the
                tree as a list, of which the first is the whole image: a divided region has its `cost` and the indices
                of its two `parts`, any other its `label`.

        Raises:
            ValueError: with `hierarchy`, the attention was not kept, or the method is `diffseg`.
        """
        tree = {"hierarchy": self._kept().hierarchy(self.settings)} if hierarchy else {}
        height, width = self.labels.shape
        runs = run_lengths(self.labels, len(self.segments))

        def mask(label: int) -> dict[str, Any]:
            lengths = runs[label]
            return {
                "size": [height, width],
                "counts": compress(lengths) if counts == "string" else lengths.tolist(),
            }

        return (
            {
                "width": width,
                "height": height,
                "origin": None if self.origin is None else asdict(self.origin),
                "segments": [asdict(segment) | {"segmentation": mask(segment.label)} for segment in self.segments],
                "settings": structs.asdict(self.settings),
                "timings": self.timings,
            }
            | ({} if self.void is None else {"void": self.void})
            | tree
        )

    def save(
        self,
        folder: str | Path,
        name: str,
        formats: Iterable[Format] = DEFAULT_FORMATS,
        *,
        source: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write files named `<name>.labels.png` and so on, by default the labels, the overlay and the JSON.

        Each file appears whole or not at all.

        Args:
            folder: folder to write to, created if it does not exist.
            name: name of the files, without their suffixes.
            formats: any of `labels`, `overlay`, `json`, `coco`, `polygons`, `labelme`, `svg`, `cutouts` and `palette`.
            source: name of the image's file, for the formats that refer to it.
            facts: further fields of the `json` format.

        Returns:
            The files that were written.

        Raises:
            ValueError: an unknown format.
            OSError: a file cannot be written.
        """
        with stage(None, "write"):
            return save(self, Path(folder), name, parse_formats(",".join(formats)), source, facts)

    def __eq__(self, other: object) -> bool:
        """Return whether both results have the same labels."""
        if not isinstance(other, Segmentation):
            return NotImplemented
        return np.array_equal(self.labels, other.labels)

    __hash__ = None  # type: ignore[assignment]  # labels may be written to

    def __repr__(self) -> str:
        height, width = self.labels.shape
        count = len(self.segments)
        return f"<Segmentation {width} × {height}, {count} segment{'s' * (count != 1)}>"


def _void(attention: AggregatedAttention | EncoderFeatures, segments: tuple[Segment, ...]) -> int | None:
    return len(segments) - 1 if attention.placement.hides else None
