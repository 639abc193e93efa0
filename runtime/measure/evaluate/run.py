"""Evaluate images: make the masks of every method, compare them with the labels, store the scores, and resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import prefetched
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import BundleError, DiffsegError, ImageError, MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.image import read_image
from diffseg.measure.evaluate.boundary import Boundary
from diffseg.measure.evaluate.columns import Column, columns_of
from diffseg.measure.evaluate.datasets import Dataset, Sample
from diffseg.measure.evaluate.methods import Method, methods_of
from diffseg.measure.evaluate.predictions import Predictor
from diffseg.measure.evaluate.protocol import Protocol, prepare
from diffseg.measure.evaluate.results import Record, Store
from diffseg.measure.overlap import VOID, Overlap

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import MergeSettings, Refine
    from diffseg.segmenter import Segmenter
    from numpy.typing import NDArray
    from PIL import Image

NEEDED = ("scipy", "sklearn", "skimage", "jinja2", "filelock")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one image; `error` is None if it was evaluated."""

    dataset: str
    sample: Sample
    error: DiffsegError | None
    kept: bool = False  # all results were already stored


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An image, its classes and the masks of one column, cropped and resized by the protocol."""

    image: Image.Image
    truth: NDArray[np.uint8]
    labels: NDArray[np.integer]


class Evaluation:
    """One run over data sets. Iterate for each image's outcome; `records` returns the results.

    Args:
        datasets: the data sets to evaluate on.
        methods: the methods to evaluate.
        segmenter: the segmenter for methods that need a network; may be None if there are none.
        protocol: `paper`, `diffcut` or `full`.
        folder: folder of the stored results, from which an interrupted run continues.
        threshold: threshold of `diffseg`; None for the bundle's default.
        thresholds: thresholds of the sweep. One pass of the network serves all columns.
        taus: values of tau for `cut` and `diffcut`; empty for the bundle's default.
        refinements: refinements for these two and `diffseg`; empty for the bundle's default, where the protocol has it.
        workers: number of threads that evaluate images in parallel.

    Raises:
        MissingPackageError: the extra `eval` is not installed.
        BundleError: a method needs attention, and the bundle has features in its place, or the reverse.
        ValueError: a method needs a network, but there is no segmenter; or a method or the protocol does not have one
            of the refinements.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        methods: tuple[Method, ...],
        segmenter: Segmenter | None,
        protocol: Protocol,
        folder: Path,
        *,
        threshold: float | None = None,
        thresholds: tuple[float, ...] = (),
        taus: tuple[float, ...] = (),
        refinements: tuple[Refine, ...] = (),
        workers: int = 1,
    ) -> None:
        need_packages()
        _check(methods, segmenter, protocol, refinements)
        self.datasets = datasets
        self.segmenter = segmenter
        self.protocol = protocol
        self.workers = workers
        settings = None if segmenter is None else _settings(segmenter.settings.updated(threshold), protocol)
        self.graphs = {} if segmenter is None else {g: segmenter.bundle.content_hash(g) for g in (ENCODER, UNET)}
        model = {"graphs": list(self.graphs.values()), "provider": segmenter.provider if segmenter else None}
        base = {"protocol": protocol.value}
        self.columns = columns_of(methods, settings, thresholds, base, model, taus=taus, refinements=refinements)
        self._predict = Predictor(segmenter, protocol)
        self._stores = {column.name: Store(folder, column) for column in self.columns}
        self._contents: dict[tuple[str, str], str] = {}  # data set and image → content hash, for images that succeeded

    def __len__(self) -> int:
        return sum(len(dataset.samples) for dataset in self.datasets)

    def __iter__(self) -> Iterator[Outcome]:
        jobs = [(dataset, sample) for dataset in self.datasets for sample in dataset.samples]
        return prefetched(self._evaluate, jobs, self.workers if self.workers > 1 else 0)

    def records(self, dataset: Dataset, column: Column) -> list[Record]:
        """Return the records of the images that succeeded, in the data set's order."""
        contents = [self._contents.get((dataset.name, sample.name)) for sample in dataset.samples]
        found = [self._stores[column.name].get(content) for content in contents if content is not None]
        return [record for record in found if record is not None]

    def example(self, dataset: Dataset, sample: Sample, column: Column) -> Example:
        """Make the masks of one column for an image again, to show them in a report.

        Raises:
            ImageError: the image or its label has become unreadable.
        """
        image, truth = self._open(dataset, sample)
        masks = self._predict(image, truth, [column], dataset.background)
        return next(Example(image, truth, labels) for _, labels, _ in masks)

    def _evaluate(self, job: tuple[Dataset, Sample]) -> Outcome:
        dataset, sample = job
        try:
            content = _content(dataset, sample)
            missing = [column for column in self.columns if self._stores[column.name].get(content) is None]
            if missing:
                image, truth = self._open(dataset, sample)
                boundary = Boundary(truth)
                for column, labels, seconds in self._predict(image, truth, missing, dataset.background):
                    record = Record(sample.name, Overlap.of(truth, labels), boundary.counts(labels), seconds)
                    self._stores[column.name].add(content, record)
        except DiffsegError as error:
            return Outcome(dataset.name, sample, error)
        self._contents[dataset.name, sample.name] = content
        return Outcome(dataset.name, sample, None, kept=not missing)

    def _open(self, dataset: Dataset, sample: Sample) -> tuple[Image.Image, NDArray[np.uint8]]:
        image, truth = read_image(sample.image), dataset.read_label(sample)
        if truth.shape != (image.height, image.width):
            raise ImageError(
                f"{sample.label}: {truth.shape[1]} × {truth.shape[0]} pixels, but {sample.image.name} has "
                f"{image.width} × {image.height}"
            )
        size = self.protocol.input_size if self.segmenter is None else self.segmenter.bundle.manifest.image_size
        image, truth = prepare(image, truth, self.protocol, size)
        if self.protocol is Protocol.DIFFCUT and dataset.background is not None:
            truth[truth == VOID] = dataset.background
        if bool((truth == VOID).all()):
            raise ImageError(f"{sample.label}: every pixel that would be compared is void")
        return image, truth


def need_packages() -> None:
    """Raise MissingPackageError if a package of the extra `eval` is missing."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"evaluate needs {', '.join(missing)}: {install_command('eval')}")


def _check(
    methods: tuple[Method, ...], segmenter: Segmenter | None, protocol: Protocol, refinements: tuple[Refine, ...]
) -> None:
    """Refuse methods and refinements that cannot be evaluated."""
    networked = [method for method in methods if method.needs_network]
    if segmenter is None and networked:
        raise ValueError(f"{', '.join(networked)} need a segmenter")
    if segmenter is not None:
        manifest = segmenter.bundle.manifest
        allowed = methods_of(features=manifest.features is not None)
        if refused := [method for method in networked if method not in allowed]:
            lacking = "attention" if manifest.features is not None else "encoder features"
            raise BundleError(
                f"no {lacking} for {', '.join(refused)}: bundle {manifest.name!r} was exported for "
                f"{', '.join(manifest.methods)}; choose from {', '.join(allowed)}, or export another with --method"
            )
    if refused_refinements := [name for name in refinements if name not in protocol.refinements]:
        raise ValueError(
            f"protocol {protocol.value} has no refinement {', '.join(refused_refinements)}; "
            f"choose from {', '.join(protocol.refinements)}, or --protocol {Protocol.FULL.value}"
        )


def _settings(settings: MergeSettings, protocol: Protocol) -> MergeSettings:
    """Return the settings without a refinement that the protocol does not have."""
    return settings if settings.refine in protocol.refinements else settings.updated(refine="none")


def _content(dataset: Dataset, sample: Sample) -> str:
    """Return a hash of an image, its label map and the meaning of the label values."""
    digest = hashlib.sha256(dataset.mapping.tobytes())
    if dataset.background is not None:
        digest.update(bytes([dataset.background]))
    for path, read in ((sample.image, sample.image.read_bytes), (sample.label, sample.label_bytes)):
        try:
            digest.update(hashlib.sha256(read()).digest())
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
