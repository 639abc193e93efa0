"""The options of a batch: the bundle, its settings, and the contents of the rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diffseg.engines.bundle.bundle import Bundle, open_bundle
from diffseg.engines.bundle.manifest import MANIFEST
from diffseg.engines.bundle.settings import MergeSettings, Method, Refine
from diffseg.engines.files import sha256
from diffseg.image import Fit
from msgspec import structs

SCHEMA = 1
"""Version of the rows and of the run's record. A new version starts a new run."""
MOST_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The options of a batch. They are sent to other processes, so they are plain values only.

    Attributes:
        model: embedded model, bundle folder or hub id, as every machine finds it.
        provider: execution provider.
        batch: images per pass through the network.
        threads: CPU threads of the network; None uses all cores.
        threshold: largest KL distance of maps that are merged; None uses the bundle's default.
        method: how masks are made; None uses the bundle's default, as for the settings down to `refine`.
        anchors: anchors per side.
        tau: cost of a normalised cut.
        refine: refinement of the masks.
        fit: how images are fitted to the network's input.
        labels: whether rows hold the labels as a PNG.
        overlays: whether rows hold the image with its masks drawn over it, as a PNG.
        pixels: images with more pixels are not decoded.
    """

    model: str = "tiny"
    provider: str = "auto"
    batch: int = 1
    threads: int | None = None
    threshold: float | tuple[float, ...] | None = None
    method: Method | None = None
    anchors: int | None = None
    tau: float | None = None
    refine: Refine | None = None
    fit: Fit = "stretch"
    labels: bool = False
    overlays: bool = False
    pixels: int = MOST_PIXELS

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `SegmentWorker`."""
        return asdict(self)

    def settings(self, bundle: Bundle) -> MergeSettings:
        """Return the settings for a bundle.

        Raises:
            ValueError: a setting is out of range, or the bundle has no output for the method.
        """
        return bundle.manifest.defaults.updated(self.threshold, self.anchors, self.refine, self.method, self.tau)

    def describe(self) -> dict[str, Any]:
        """Return what decides the contents of rows: two runs with the same description give the same masks.

        The provider is left out, because `auto` chooses one per machine; each row names its own.

        Raises:
            BundleError: the bundle does not exist or is damaged.
            ValueError: a setting is out of range, or the batch is too large for the bundle.
        """
        bundle = open_bundle(self.model, self.method)
        if not 1 <= self.batch <= bundle.manifest.max_batch:
            name, most = bundle.manifest.name, bundle.manifest.max_batch
            raise ValueError(f"batch must be 1 to {most} for bundle {name!r}, found {self.batch}")
        return {
            "schema": SCHEMA,
            "bundle": bundle.manifest.name,
            "bundle_sha256": sha256(bundle.folder / MANIFEST),
            "settings": structs.asdict(self.settings(bundle)),
            "fit": self.fit,
            "labels": self.labels,
            "overlays": self.overlays,
            "pixels": self.pixels,
        }
