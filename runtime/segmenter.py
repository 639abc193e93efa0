"""Segment images: from image files or arrays to masks."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
from diffseg.arrays import prefetched
from diffseg.attention import AggregatedAttention, warn_of_mended_rows
from diffseg.cancellation import StoppedError
from diffseg.engines.bundle.bundle import Bundle, open_bundle
from diffseg.engines.bundle.manifest import MANIFEST
from diffseg.engines.bundle.settings import MergeSettings, Method, Refine, Threshold
from diffseg.engines.errors import DeviceMemoryError, ImageError
from diffseg.engines.files import sha256
from diffseg.engines.providers.network import Network
from diffseg.engines.providers.select import load_network
from diffseg.features import EncoderFeatures
from diffseg.image import Fit, ImageSource, fit_image, read_image
from diffseg.lifetime import Lifetime, portable_model
from diffseg.masks import PIXEL_REFINEMENTS, fit_guide
from diffseg.methods.aggregate import aggregate_and_count
from diffseg.origin import Origin
from diffseg.pixels import ChannelOrder
from diffseg.prepared import Prepared
from diffseg.segmentation import Segmentation
from diffseg.sources import source_name
from diffseg.stages import stage

Many: TypeAlias = list[Any] | tuple[Any, ...] | Generator[Any, None, None]
"""Images that give a list of results. At run time, any iterator will do."""

logger = logging.getLogger(__name__)

DECODED_AHEAD = 2
"""Number of batches to decode while the GPU works on another one."""


class Segmenter(Lifetime):
    """Segments images with a loaded bundle. Several threads can share one segmenter. See `Lifetime` for its end."""

    def __init__(self, bundle: Bundle, network: Network, *, batch: int = 1) -> None:
        self.bundle = bundle.for_method()
        manifest = self.bundle.manifest
        if not 1 <= batch <= manifest.max_batch:
            raise ValueError(f"batch must be 1 to {manifest.max_batch} for bundle {manifest.name!r}, found {batch}")
        self.network = network
        self.batch = batch
        self._batch_limit = batch  # reduced when the device runs out of memory
        self.settings = manifest.defaults
        if network.device != "cpu" and manifest.defaults.refine in PIXEL_REFINEMENTS:
            logger.info("refine=%r, the default here, runs on the CPU; 'none' is faster", manifest.defaults.refine)
        self.bundle_sha256 = sha256(bundle.folder / MANIFEST)

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny",
        *,
        provider: str = "auto",
        batch: int = 1,
        threads: int | None = None,
        devices: Sequence[int] | None = None,
        method: Method | None = None,
    ) -> Segmenter:
        """Load a bundle.

        Args:
            model: the name of an embedded model, a bundle folder, or a hub id (`owner/name[@revision]`).
            provider: the execution provider; `auto` selects the fastest one that runs here.
            batch: number of images per pass through the network, at most the bundle's maximum batch size.
            threads: number of CPU threads for the network; None uses all cores.
            devices: indices of the NVIDIA GPUs, in CUDA's order; None uses the first. Each GPU works on one batch at a
                time, so name several only where threads share this segmenter.
            method: method to use by default; None uses the bundle's. A bundle for `diffseg` and `diffcut` has a
                network for each, of which this chooses one.

        Raises:
            BundleError: the bundle does not exist or is damaged.
            ProviderError: the provider cannot run on this machine.
            ValueError: the bundle has no output for the method.
        """
        bundle = open_bundle(model, method)
        segmenter = cls(bundle, load_network(bundle, provider, threads=threads, devices=devices), batch=batch)
        segmenter._loaded_with = {"model": portable_model(model, bundle.folder), "provider": provider, "batch": batch}
        segmenter._loaded_with |= {"threads": threads, "devices": devices, "method": method}
        return segmenter

    @property
    def provider(self) -> str:
        """The provider that executes the network."""
        return self.network.provider

    @overload
    def __call__(
        self, image: ImageSource, threshold: Threshold | None = ..., method: Method | None = ...,
        keep_attention: bool = ..., *, anchors: int | None = ..., tau: float | None = ..., refine: Refine | None = ...,
        fit: Fit = ..., channel_order: ChannelOrder = ...,
    ) -> Segmentation: ...  # fmt: skip
    @overload
    def __call__(
        self, image: Many, threshold: Threshold | None = ..., method: Method | None = ...,
        keep_attention: bool = ..., *, anchors: int | None = ..., tau: float | None = ..., refine: Refine | None = ...,
        fit: Fit = ..., channel_order: ChannelOrder = ...,
    ) -> list[Segmentation]: ...  # fmt: skip
    def __call__(
        self,
        image: ImageSource | Many,
        threshold: Threshold | None = None,
        method: Method | None = None,
        keep_attention: bool = False,
        *,
        anchors: int | None = None,
        tau: float | None = None,
        refine: Refine | None = None,
        fit: Fit = "stretch",
        channel_order: ChannelOrder = "rgb",
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or many of different sizes.

        Args:
            image: a path, the bytes of an image file, an open file, a PIL image, or an array or tensor; see
                `read_image`. A list, tuple or generator of these returns a list.
            threshold: maximum KL distance, in nats, at which two maps are merged. A sequence has one threshold per
                round. None uses the bundle's default.
            method: `diffseg` merges attention maps, `cut` cuts the graph of the attention, and `diffcut` that of the
                features of a bundle that was exported for it. None uses the bundle's default.
            keep_attention: keep the aggregated attention for `resegment`. This takes 64 MB per image at 512 px.
            anchors: number of anchors per side; None uses the bundle's default.
            tau: with `cut` and `diffcut`, a region is divided while the normalised cut costs less than this, from
                0 to 2. None uses the bundle's default.
            refine: `kmeans` refines the proposals before they compete for pixels, `colour` moves the borders of the
                masks to where the colours of the image change, `pamr` averages the masks over pixels of similar colour,
                and `none` does nothing. None uses the bundle's default.
            fit: how to bring the image to the network's input size: `stretch`, `crop` or `pad`.
            channel_order: `bgr` for arrays of OpenCV.

        Raises:
            ImageError: an image cannot be read. Use `stream` to continue with the remaining images.
            ValueError: a setting is out of range.
        """
        many = isinstance(image, list | tuple) or (isinstance(image, Iterator) and not hasattr(image, "read"))
        results = []
        for _, result in self.stream(
            cast("Many", image) if many else [cast("ImageSource", image)],
            threshold,
            method,
            keep_attention,
            anchors=anchors,
            tau=tau,
            refine=refine,
            fit=fit,
            channel_order=channel_order,
        ):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results if many else results[0]

    def stream(
        self,
        images: Iterable[ImageSource],
        threshold: Threshold | None = None,
        method: Method | None = None,
        keep_attention: bool = False,
        *,
        anchors: int | None = None,
        tau: float | None = None,
        refine: Refine | None = None,
        fit: Fit = "stretch",
        channel_order: ChannelOrder = "rgb",
    ) -> Iterator[tuple[ImageSource, Segmentation | ImageError]]:
        """Segment images one after another and yield the results in order.

        An image that cannot be read yields its `ImageError` instead of a `Segmentation`. The arguments are those of
        `__call__`. The segmenter does not keep an image or its result after yielding it.
        """
        settings = self.settings.updated(threshold, anchors, refine, method, tau)
        waiting = iter(images)
        groups = iter(lambda: list(islice(waiting, self.batch)), [])
        ahead = int(self.network.device != "cpu")

        def prepare(source: ImageSource) -> tuple[ImageSource, Prepared | ImageError]:
            try:
                return source, self.prepare(
                    source, settings, fit=fit, keep_attention=keep_attention, channel_order=channel_order
                )
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
        channel_order: ChannelOrder = "rgb",
    ) -> Prepared:
        """Decode an image and bring it to the network's input size. Pass the result to `finish`.

        Args:
            source: a path, bytes, an open file, a PIL image or an array; see `read_image`.
            settings: thresholds, anchors and refinement for this image; None uses the bundle's defaults.
            fit: how to bring the image to the network's input size: `stretch`, `crop` or `pad`.
            keep_attention: whether the result keeps the aggregated attention.
            channel_order: `bgr` for arrays of OpenCV.

        Raises:
            ImageError: the image cannot be read.
            ValueError: `fit` or `channel_order` is unknown.
        """
        timings: dict[str, float] = {}
        with stage(timings, "decode"):
            image = read_image(source, channel_order)
        with stage(timings, "resize"):
            pixels, placement = fit_image(image, self.bundle.manifest.image_size, fit)
            wanted = settings or self.settings
            guide = fit_guide(image, placement, fit) if keep_attention or wanted.refine == "colour" else None
        name = self.bundle.manifest.name
        origin = Origin(source_name(source), name, self.bundle_sha256, self.provider, fit)
        return Prepared(image, pixels, placement, timings, wanted, keep_attention, origin, guide)

    def finish(self, images: Sequence[Prepared]) -> list[Segmentation]:
        """Segment prepared images in one batch, each with its own settings.

        If the device runs out of memory, the batch size is halved and the images go through in several passes.

        Args:
            images: results of `prepare`, at most as many as the bundle's maximum batch size.

        Raises:
            DeviceMemoryError: even a single image does not fit into the device's memory.
            StoppedError: the `check` of an image has stopped its masks.
        """
        results: list[Segmentation] = []
        for outcome in self.outcomes(images):
            if isinstance(outcome, StoppedError):
                raise outcome
            results.append(outcome)
        return results

    def outcomes(self, images: Sequence[Prepared]) -> list[Segmentation | StoppedError]:
        """Segment like `finish`, but return the error of an image whose `check` has stopped its masks."""
        results: list[Segmentation | StoppedError] = []
        while part := images[len(results) : len(results) + self._batch_limit]:
            try:
                results += self._pass(part)
            except DeviceMemoryError as error:
                if len(part) == 1:
                    raise
                self._batch_limit = len(part) // 2
                logger.warning("%s; continuing with a batch size of %d", error, self._batch_limit)
        return results

    def _finish_good(
        self, batch: list[tuple[ImageSource, Prepared | ImageError]]
    ) -> list[tuple[ImageSource, Segmentation | ImageError]]:
        results = iter(self.finish([item for _, item in batch if not isinstance(item, ImageError)]))
        return [(source, item if isinstance(item, ImageError) else next(results)) for source, item in batch]

    def _pass(self, images: Sequence[Prepared]) -> list[Segmentation | StoppedError]:
        grids = [attention.grid for attention in self.bundle.manifest.attention]
        features = self.bundle.manifest.features
        shared: dict[str, float] = {}
        results: list[Segmentation | StoppedError] = []
        attentions = []
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
                found: AggregatedAttention | EncoderFeatures
                if features is not None:
                    found = EncoderFeatures(maps[0], features.grid, image.pixels, image.placement, image.guide)
                else:
                    with stage(timings, "aggregate"):
                        # Overwrites the finest map.
                        values, mended = aggregate_and_count(maps, grids=grids, out=maps[0])
                        session.wait()
                    found = AggregatedAttention(values, image.pixels, image.placement, mended, image.guide)
                    attentions.append(found)
                results.append(image.masks(found, timings))
            session.wait()  # also finishes the copies of kept attention
            warn_of_mended_rows(attentions)
        return results
