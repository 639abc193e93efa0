"""Images → masks: the main job."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from diffseg.arrays import prefetched
from diffseg.attention import AggregatedAttention
from diffseg.engines.bundle.bundle import Bundle, open_bundle
from diffseg.engines.bundle.manifest import MergeSettings, Refine, Threshold
from diffseg.engines.errors import DeviceMemoryError, ImageError
from diffseg.engines.providers.network import Network
from diffseg.engines.providers.select import load_network
from diffseg.image import Fit, ImageSource, Placement, fit_image, read_image
from diffseg.methods.aggregate import aggregate_attention
from diffseg.segmentation import Segmentation
from diffseg.stages import stage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

logger = logging.getLogger(__name__)

DECODED_AHEAD = 2
"""Batches that are decoded while another one is on the GPU."""


class Segmenter:
    """A bundle, loaded and ready. Threads may share one."""

    def __init__(self, bundle: Bundle, network: Network, *, batch: int = 1) -> None:
        manifest = bundle.manifest
        if not 1 <= batch <= manifest.max_batch:
            raise ValueError(f"batch must be 1 to {manifest.max_batch} for bundle {manifest.name!r}, found {batch}")
        self.bundle = bundle
        self.network = network
        self.batch = batch
        self._batch_limit = batch  # what the memory of the device is known to hold
        self.settings = manifest.defaults

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny",
        *,
        provider: str = "auto",
        batch: int = 1,
        threads: int | None = None,
    ) -> Segmenter:
        """Load a bundle.

        Args:
            model: an embedded name, a bundle folder, or a hub id (`owner/name[@revision]`).
            provider: what executes it; `auto` takes the fastest that runs here. See `.provider`.
            batch: images that go through the network at once, at most the bundle's largest batch.
            threads: CPU threads of the network; None for all cores.

        Raises:
            BundleError: there is no such bundle, or it is damaged.
            ProviderError: the provider can't run here.
        """
        bundle = open_bundle(model)
        return cls(bundle, load_network(bundle, provider, threads=threads), batch=batch)

    @property
    def provider(self) -> str:
        """The provider that executes the network."""
        return self.network.provider

    @overload
    def __call__(
        self, image: ImageSource, threshold: Threshold | None = ..., keep_attention: bool = ...,
        *, anchors: int | None = ..., refine: Refine | None = ..., fit: Fit = ...,
    ) -> Segmentation: ...  # fmt: skip
    @overload
    def __call__(
        self, image: list[Any] | tuple[Any, ...], threshold: Threshold | None = ..., keep_attention: bool = ...,
        *, anchors: int | None = ..., refine: Refine | None = ..., fit: Fit = ...,
    ) -> list[Segmentation]: ...  # fmt: skip
    def __call__(
        self,
        image: ImageSource | list[Any] | tuple[Any, ...],
        threshold: Threshold | None = None,
        keep_attention: bool = False,
        *,
        anchors: int | None = None,
        refine: Refine | None = None,
        fit: Fit = "stretch",
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or a list of images of any sizes.

        Args:
            image: a path, a PIL image, or uint8 (H, W, 3); a list gives a list.
            threshold: largest KL distance, in nats, of maps that are merged; a sequence has one per round.
                None: the bundle's default.
            keep_attention: keep the aggregated attention for `resegment`: 64 MB per image at 512 px.
            anchors: anchors per side; None: the bundle's default.
            refine: `kmeans` refines the proposals before they compete, `colour` moves the borders of the masks to
                where the picture's colours change, `none` does neither. None: the bundle's default.
            fit: how the picture is brought to the network's size: `stretch`, `crop` or `pad`.

        Raises:
            ImageError: an image can't be read; `stream` goes on with the others.
            ValueError: a setting is out of range.
        """
        many = isinstance(image, list | tuple)
        sources: list[ImageSource] = list(image) if isinstance(image, list | tuple) else [image]
        results = []
        for _, result in self.stream(sources, threshold, keep_attention, anchors=anchors, refine=refine, fit=fit):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results if many else results[0]

    def stream(
        self,
        images: Iterable[ImageSource],
        threshold: Threshold | None = None,
        keep_attention: bool = False,
        *,
        anchors: int | None = None,
        refine: Refine | None = None,
        fit: Fit = "stretch",
    ) -> Iterator[tuple[ImageSource, Segmentation | ImageError]]:
        """Segment images as they come, in order; an image that can't be read gives its error in its place.

        Arguments as for a call. Nothing is kept of an image once it was yielded.
        """
        settings = self.settings.updated(threshold, anchors, refine)
        waiting = iter(images)
        groups = iter(lambda: list(islice(waiting, self.batch)), [])
        # While a GPU works on a batch, the host decodes the next ones, and whoever called writes the last one's masks.
        ahead = int(self.network.device != "cpu")

        def prepare(source: ImageSource) -> tuple[ImageSource, Prepared | ImageError]:
            try:
                return source, self.prepare(source, settings, fit=fit, keep_attention=keep_attention)
            except ImageError as error:
                return source, error

        prepared = prefetched(lambda group: [prepare(source) for source in group], groups, DECODED_AHEAD * ahead)
        for batch in prefetched(self._finish_good, prepared, ahead):
            yield from batch

    def prepare(
        self,
        source: ImageSource,
        settings: MergeSettings | None = None,
        *,
        fit: Fit = "stretch",
        keep_attention: bool = False,
    ) -> Prepared:
        """Decode an image and bring it to the network's size: what `finish` takes.

        Args:
            source: a path, a PIL image, or uint8 (H, W, 3).
            settings: how its attention becomes masks; None: the bundle's defaults.
            fit: `stretch`, `crop` or `pad`.
            keep_attention: whether its result keeps the aggregated attention.

        Raises:
            ImageError: it can't be read.
            ValueError: an unknown `fit`.
        """
        timings: dict[str, float] = {}
        with stage(timings, "decode"):
            picture = read_image(source)
        with stage(timings, "resize"):
            pixels, placement = fit_image(picture, self.bundle.manifest.image_size, fit)
        return Prepared(picture, pixels, placement, timings, settings or self.settings, keep_attention)

    def finish(self, images: Sequence[Prepared]) -> list[Segmentation]:
        """Segment images that go through the network together, each with its own settings.

        Args:
            images: at most the bundle's largest batch; less go at once where the device's memory is full.
        """
        results: list[Segmentation] = []
        while part := images[len(results) : len(results) + self._batch_limit]:
            try:
                results += self._pass(part)
            except DeviceMemoryError as error:
                if len(part) == 1:
                    raise
                self._batch_limit = len(part) // 2
                logger.warning("%s; going on with %d at once", error, self._batch_limit)
        return results

    def _finish_good(
        self, batch: list[tuple[ImageSource, Prepared | ImageError]]
    ) -> list[tuple[ImageSource, Segmentation | ImageError]]:
        results = iter(self.finish([item for _, item in batch if not isinstance(item, ImageError)]))
        return [(source, item if isinstance(item, ImageError) else next(results)) for source, item in batch]

    def _pass(self, images: Sequence[Prepared]) -> list[Segmentation]:
        grids = [attention.grid for attention in self.bundle.manifest.attention]
        shared: dict[str, float] = {}
        results = []
        with self.network.session() as session:
            with stage(shared, "encode"):
                latent = session.encode(np.stack([image.pixels for image in images]))
                session.wait()
            with stage(shared, "attend"):
                outputs = session.attend(latent)
                session.wait()
            for i, image in enumerate(images):
                timings = image.timings | {stage: seconds / len(images) for stage, seconds in shared.items()}
                maps = [output[i, ...] for output in outputs]
                with stage(timings, "aggregate"):
                    values = aggregate_attention(maps, grids=grids, out=maps[0])  # in the place of the finest
                    session.wait()
                results.append(
                    Segmentation.of(
                        AggregatedAttention(values, image.pixels, image.placement),
                        image.picture,
                        image.settings,
                        timings,
                        keep_attention=image.keep_attention,
                    )
                )
            session.wait()  # for the copies of kept attention, too
        return results


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image on its way into the network, and what is wanted of it."""

    picture: Image.Image
    pixels: NDArray[np.uint8]
    placement: Placement
    timings: dict[str, float]
    settings: MergeSettings
    keep_attention: bool
