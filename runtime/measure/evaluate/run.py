"""Evaluate images: make the masks of every method, compare them with the labels, store the scores, and resume."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import prefetched, to_host
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import DiffsegError, ImageError, MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.image import read_image
from diffseg.labels import place_labels
from diffseg.measure.evaluate.boundary import Boundary
from diffseg.measure.evaluate.datasets import Dataset, Sample
from diffseg.measure.evaluate.methods import (
    CONSTANT_CLUSTERS,
    Column,
    Method,
    columns_of,
    kmeans_attention,
    kmeans_colour,
    merge_superpixels,
)
from diffseg.measure.evaluate.protocol import PAPER_SIZE, Protocol, prepare, resize_nearest
from diffseg.measure.evaluate.results import Record, Store
from diffseg.measure.overlap import VOID, Overlap
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.suppress import non_max_suppression
from diffseg.segmentation import Segmentation

if TYPE_CHECKING:
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

    picture: Image.Image
    truth: NDArray[np.uint8]
    labels: NDArray[np.integer]


class Evaluation:
    """One run over data sets. Iterate for each image's outcome; `records` returns the results.

    Args:
        datasets: the data sets to evaluate on.
        methods: the methods to evaluate.
        segmenter: the segmenter for methods that use attention; may be None if there are none.
        protocol: `paper` or `full`.
        folder: folder of the stored results, from which an interrupted run continues.
        threshold: threshold of `diffseg`; None for the bundle's default.
        thresholds: thresholds of the sweep. One pass of the network serves all of them.
        workers: number of threads that evaluate images in parallel.

    Raises:
        MissingPackageError: the extra `eval` is not installed.
        ValueError: a method needs the attention, but there is no segmenter.
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
        workers: int = 1,
    ) -> None:
        need_packages()
        if segmenter is None and any(method.needs_attention for method in methods):
            raise ValueError(f"{', '.join(m for m in methods if m.needs_attention)} need a segmenter")
        if segmenter is not None:
            segmenter.bundle.manifest.need_attention("evaluate")
        self.datasets = datasets
        self.segmenter = segmenter
        self.protocol = protocol
        self.workers = workers
        settings = None if segmenter is None else segmenter.settings.updated(threshold)
        self.graphs = {} if segmenter is None else {g: segmenter.bundle.content_hash(g) for g in (ENCODER, UNET)}
        model = {"graphs": list(self.graphs.values()), "provider": segmenter.provider if segmenter else None}
        self.columns = columns_of(methods, settings, thresholds, {"protocol": protocol.value}, model)
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
        picture, truth = self._open(dataset, sample)
        return next(Example(picture, truth, labels) for _, labels, _ in self._predictions(picture, truth, [column]))

    def _evaluate(self, job: tuple[Dataset, Sample]) -> Outcome:
        dataset, sample = job
        try:
            content = _content(dataset, sample)
            missing = [column for column in self.columns if self._stores[column.name].get(content) is None]
            if missing:
                picture, truth = self._open(dataset, sample)
                boundary = Boundary(truth)
                for column, labels, seconds in self._predictions(picture, truth, missing):
                    record = Record(sample.name, Overlap.of(truth, labels), boundary.counts(labels), seconds)
                    self._stores[column.name].add(content, record)
        except DiffsegError as error:
            return Outcome(dataset.name, sample, error)
        self._contents[dataset.name, sample.name] = content
        return Outcome(dataset.name, sample, None, kept=not missing)

    def _open(self, dataset: Dataset, sample: Sample) -> tuple[Image.Image, NDArray[np.uint8]]:
        picture, truth = read_image(sample.image), dataset.read_label(sample)
        if truth.shape != (picture.height, picture.width):
            raise ImageError(
                f"{sample.label}: {truth.shape[1]} × {truth.shape[0]} pixels, but {sample.image.name} has "
                f"{picture.width} × {picture.height}"
            )
        size = (PAPER_SIZE, PAPER_SIZE) if self.segmenter is None else self.segmenter.bundle.manifest.image_size
        picture, truth = prepare(picture, truth, self.protocol, size)
        if bool((truth == VOID).all()):
            raise ImageError(f"{sample.label}: every pixel that would be compared is void")
        return picture, truth

    def _predictions(
        self, picture: Image.Image, truth: NDArray[np.uint8], columns: list[Column]
    ) -> Iterator[tuple[Column, NDArray[np.integer], float]]:
        """Yield each column with its masks (H, W), of the size of `truth`, and the seconds that making them took."""
        result: Segmentation | None = None
        if self.segmenter is not None and any(column.method.needs_attention for column in columns):
            # Only the attention is used. With an infinite threshold everything merges at once, which is fast.
            result = self.segmenter(picture, threshold=float("inf"), keep_attention=True)
        classes = len(np.unique(truth[truth != VOID]))
        for column in columns:
            start = time.perf_counter()
            labels = self._masks(column, picture, result, classes)
            yield column, resize_nearest(labels, truth.shape), round(time.perf_counter() - start, 4)

    def _masks(
        self, column: Column, picture: Image.Image, result: Segmentation | None, classes: int
    ) -> NDArray[np.integer]:
        if column.method is Method.COLOUR:
            return kmeans_colour(picture)
        if column.method is Method.SUPERPIXELS:
            return merge_superpixels(picture)
        assert result is not None  # noqa: S101 - __init__ checked it
        if column.method is Method.DIFFSEG:
            return self._diffseg(column, result)
        clusters = CONSTANT_CLUSTERS if column.method is Method.KMEANS_C else classes
        attention = result.kept_attention()
        coarse = kmeans_attention(to_host(attention.values), clusters)
        if self.protocol is Protocol.PAPER:
            return resize_nearest(coarse, (PAPER_SIZE, PAPER_SIZE))
        return place_labels(resize_nearest(coarse, attention.placement.size).astype(np.uint16), attention.placement)[0]

    def _diffseg(self, column: Column, result: Segmentation) -> NDArray[np.integer]:
        settings = column.settings
        assert settings is not None  # noqa: S101 - columns_of sets it
        if self.protocol is Protocol.FULL:
            return result.with_settings(settings).labels
        # Only the steps of the paper. Proposals that win no pixel keep their numbers, as in the reference code, where
        # they take part in the matching.
        attention = result.kept_attention()
        proposals = attention.proposals(settings)
        if settings.refine == "kmeans":
            proposals = kmeans_refine(attention.values, proposals)
        return np.asarray(to_host(non_max_suppression(proposals, (PAPER_SIZE, PAPER_SIZE))))


def need_packages() -> None:
    """Raise MissingPackageError if a package of the extra `eval` is missing."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"evaluate needs {', '.join(missing)}: {install_command('eval')}")


def _content(dataset: Dataset, sample: Sample) -> str:
    """Return a hash of an image, its label map and the meaning of the label values."""
    digest = hashlib.sha256(dataset.mapping.tobytes())
    for path in (sample.image, sample.label):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
