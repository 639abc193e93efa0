"""The result for one image, and how it is made from its attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from diffseg import draw
from diffseg.arrays import Array, to_host
from diffseg.engines.bundle.manifest import REFINEMENTS, Defaults, Refine
from diffseg.engines.files import atomic_file
from diffseg.methods.colour import colour_refine
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import AnchorDistances, anchor_distances, merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffseg.stages import stage
from PIL import Image

if TYPE_CHECKING:
    from diffseg.image import Placement
    from numpy.typing import NDArray

Threshold: TypeAlias = "float | Sequence[float]"
BYTE_LABELS = 256


@dataclass(frozen=True, slots=True)
class MergeSettings:
    """How attention becomes masks.

    Raises:
        ValueError: no threshold or a negative one, no anchor, or an unknown refinement.
    """

    thresholds: tuple[float, ...]
    anchors: int
    refine: Refine = "none"

    def __post_init__(self) -> None:
        if not self.thresholds or not all(t >= 0 for t in self.thresholds):
            raise ValueError(f"threshold must be a number of at least 0, or one a round, found {list(self.thresholds)}")
        if self.anchors < 1:
            raise ValueError(f"anchors must be at least 1 a side, found {self.anchors}")
        if self.refine not in REFINEMENTS:
            raise ValueError(f"refine must be one of {', '.join(REFINEMENTS)}, found {self.refine!r}")

    @classmethod
    def of(cls, defaults: Defaults) -> MergeSettings:
        """Return what a bundle uses when nobody says otherwise."""
        return cls(defaults.thresholds, defaults.anchors, defaults.refine)

    def updated(
        self, threshold: Threshold | None = None, anchors: int | None = None, refine: Refine | None = None
    ) -> MergeSettings:
        """Copy with what is not None; a single threshold is taken for every round."""
        thresholds = self.thresholds
        if threshold is not None:
            many = np.ndim(threshold) > 0
            thresholds = tuple(float(t) for t in np.atleast_1d(np.asarray(threshold, dtype=np.float64)))
            if not many:
                thresholds *= len(self.thresholds)
        return MergeSettings(thresholds, self.anchors if anchors is None else anchors, refine or self.refine)


@dataclass(frozen=True, slots=True)
class Segment:
    """One region."""

    label: int
    area: int  # pixels
    bbox: tuple[int, int, int, int]  # left, top, width, height in pixels, as in COCO


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The masks of one image.

    Attributes:
        labels: (H, W) uint16, 0 to k-1 without gaps, the size of the (upright) input.
        segments: one for each label, largest first.
        timings: seconds by stage; the network's share of a batch is divided evenly.
        attention: (n, n, n, n) float32 when it was kept, else None.
        image: the decoded picture, RGB.
        settings: the thresholds, anchors and refinement that were used.
        placement: where the picture lies in what the network saw.
        pixels: (h, w, 3) uint8, what the network saw.
        distances: of the kept attention from its anchors, by anchors a side: the last that were needed.
    """

    labels: NDArray[np.uint16]
    segments: tuple[Segment, ...]
    timings: dict[str, float]
    attention: Array | None
    image: Image.Image
    settings: MergeSettings
    placement: Placement
    pixels: NDArray[np.uint8]
    distances: dict[int, AnchorDistances] = field(default_factory=dict, repr=False)

    def resegment(
        self, threshold: Threshold | None = None, *, anchors: int | None = None, refine: Refine | None = None
    ) -> Segmentation:
        """Make new masks from the kept attention, without a pass through the network.

        With the same anchors as before, a new threshold costs a third of the merging.

        Raises:
            ValueError: the attention was not kept, or a setting is out of range.
        """
        if self.attention is None:
            raise ValueError("resegment needs the attention: segment with keep_attention=True")
        settings = self.settings.updated(threshold, anchors, refine)
        timings: dict[str, float] = {}
        labels, segments = make_masks(
            self.attention, self.pixels, self.placement, settings, timings, distances=self.distances
        )
        return replace(self, labels=labels, segments=segments, timings=timings, settings=settings)

    def proposals(self, settings: MergeSettings) -> Array:
        """Merge the kept attention → (k, h, w) float32 proposals, see `merge_attention`."""
        return make_proposals(self.attention, settings, self.distances)

    def overlay(self, opacity: float = 0.5, *, outline: bool = True) -> Image.Image:
        """Picture with the masks over it, RGB."""
        return draw.overlay(self.image, self.labels, opacity, outline=outline)

    def label_image(self) -> Image.Image:
        """Labels as a grey picture: 8-bit, or 16-bit for over 256 labels."""
        return Image.fromarray(self.labels.astype(np.uint8) if len(self.segments) <= BYTE_LABELS else self.labels)

    def to_dict(self) -> dict[str, Any]:
        """What the .json file holds."""
        height, width = self.labels.shape
        return {
            "width": width,
            "height": height,
            "segments": [asdict(segment) for segment in self.segments],
            "settings": asdict(self.settings),
            "timings": self.timings,
        }

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write `<name>.labels.png` (8-bit, or 16-bit for over 256 labels), `.overlay.png` and `.json`.

        Each file appears whole or not at all.
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


def make_proposals(attention: Array, settings: MergeSettings, distances: dict[int, AnchorDistances]) -> Array:
    """Aggregated attention (n, n, n, n) → proposals (k, n, n); takes distances from the dict, or puts them there."""
    found = distances.get(settings.anchors)
    if found is None:
        found = anchor_distances(attention, settings.anchors)
        distances.clear()
        distances[settings.anchors] = found
    return merge_attention(attention, settings.thresholds, settings.anchors, distances=found)


def make_masks(
    attention: Array,
    pixels: NDArray[np.uint8],
    placement: Placement,
    settings: MergeSettings,
    timings: dict[str, float],
    *,
    distances: dict[int, AnchorDistances] | None = None,
) -> tuple[NDArray[np.uint16], tuple[Segment, ...]]:
    """Aggregated attention (n, n, n, n) of (H, W, 3) → labels at the picture's size, and their segments.

    `distances` are those of the attention from its anchors, by anchors a side, as far as they are known; those that
    were needed are there afterwards.
    """
    with stage(timings, "merge"):
        proposals = make_proposals(attention, settings, {} if distances is None else distances)
    if settings.refine == "kmeans":
        with stage(timings, "refine"):
            proposals = kmeans_refine(attention, proposals)
    with stage(timings, "suppress"):
        labels = to_host(non_max_suppression(proposals, placement.size))
        if settings.refine != "colour":
            return place_labels(labels, placement)
    with stage(timings, "refine"):
        return place_labels(colour_refine(labels, pixels), placement)


def place_labels(labels: NDArray[np.uint16], placement: Placement) -> tuple[NDArray[np.uint16], tuple[Segment, ...]]:
    """Bring a label map of the network's size to the picture's, by nearest neighbour, with dense labels.

    Areas and boxes are counted on the small map, whose rows and columns are only repeated or dropped.
    """
    rows, columns = placement.indices()
    height, width = labels.shape
    area = np.outer(
        np.bincount(rows, minlength=height), np.bincount(columns, minlength=width)
    )  # pixels that each place becomes
    areas = np.bincount(labels.ravel(), weights=area.ravel()).astype(np.int64)
    kept = np.flatnonzero(areas)
    dense = np.zeros(len(areas), dtype=np.uint16)
    dense[kept] = np.arange(len(kept), dtype=np.uint16)
    segments = []
    for label, old in enumerate(kept):
        mask = (labels == old) & (area > 0)
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom = np.searchsorted(rows, y[0], "left"), np.searchsorted(rows, y[-1], "right")
        left, right = np.searchsorted(columns, x[0], "left"), np.searchsorted(columns, x[-1], "right")
        segments.append(Segment(label, int(areas[old]), (int(left), int(top), int(right - left), int(bottom - top))))
    placed = dense[labels][rows[:, None], columns[None, :]]
    return placed, tuple(sorted(segments, key=lambda s: (-s.area, s.label)))
