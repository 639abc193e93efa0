"""The worker: a loaded bundle that turns batches of encoded images into rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from diffseg.arrays import prefetched
from diffseg.engines.bundle.settings import Method, Refine
from diffseg.engines.errors import ImageError, MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.image import Fit
from diffseg.prepared import Prepared
from diffseg.scale.options import MOST_PIXELS
from diffseg.scale.rows import Row, arrow_schema, arrow_table, error_row, result_row
from diffseg.segmenter import DECODED_AHEAD, Segmenter
from diffseg.serving.protocol.errors import RequestError
from diffseg.serving.protocol.untrusted import decode_in_strips, open_encoded
from diffseg.stages import stage
from msgspec import structs

if TYPE_CHECKING:
    import pyarrow as pa

Item: TypeAlias = "tuple[str, bytes | ImageError]"
"""Key of an image, and its encoded bytes or why they could not be read."""


class SegmentWorker:
    """Segments batches of encoded images. Use it by itself in `Dataset.map_batches`, or call `rows`.

        dataset = ray.data.read_binary_files("photos", include_paths=True)
        dataset.map_batches(SegmentWorker, fn_constructor_kwargs={"model": "tiny"}, batch_size=8, concurrency=2)

    On a small machine, also pass the `num_cpus` and `threads` that `plan_workers` finds, or use `segment_dataset`.
    Images are decoded here, with limits that make untrusted bytes safe. Attention never leaves the worker.

    Args:
        model: embedded model, bundle folder or hub id, as the worker's machine finds it.
        provider: execution provider; a named one that cannot run is an error.
        batch: images per pass through the network, at most the bundle's largest batch.
        threads: CPU threads of the network; None uses all cores, which suits one worker per machine only.
        threshold: None uses the bundle's default, as with all settings; see `Segmenter`.
        method: how masks are made.
        anchors: anchors per side.
        tau: cost of a normalised cut.
        refine: refinement of the masks.
        fit: how images are fitted to the network's input.
        labels: add the labels to each row, as a PNG.
        overlays: add the image with its masks drawn over it to each row, as a PNG.
        pixels: images with more pixels are not decoded; they become rows with an error.
        data_column: column with the encoded images.
        key_column: column with the keys of the images. Without it, keys are the SHA-256 of the encoded images.

    Raises:
        BundleError: the bundle does not exist or is damaged.
        ProviderError: the provider cannot run here.
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        model: str = "tiny",
        *,
        provider: str = "auto",
        batch: int = 1,
        threads: int | None = None,
        threshold: float | tuple[float, ...] | None = None,
        method: Method | None = None,
        anchors: int | None = None,
        tau: float | None = None,
        refine: Refine | None = None,
        fit: Fit = "stretch",
        labels: bool = False,
        overlays: bool = False,
        pixels: int = MOST_PIXELS,
        data_column: str = "bytes",
        key_column: str = "path",
    ) -> None:
        self.segmenter = Segmenter.load(model, provider=provider, batch=batch, threads=threads, method=method)
        self.settings = self.segmenter.settings.updated(threshold, anchors, refine, method, tau)
        self.fit = fit
        self.labels = labels
        self.overlays = overlays
        self.pixels = pixels
        self.data_column = data_column
        self.key_column = key_column
        self.seconds: Counter[str] = Counter()  # per stage, of all images so far
        manifest = self.segmenter.bundle.manifest
        self._constant = {
            "settings": json.dumps(structs.asdict(self.settings)),
            "fit": fit,
            "bundle": manifest.name,
            "bundle_sha256": self.segmenter.bundle_sha256,
            "provider": self.segmenter.provider,
        }

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Segment a batch.

        Args:
            batch: columns; the one of `data_column` holds encoded images, that of `key_column` their keys.

        Returns:
            One row per image, in order, with the schema of `arrow_schema`.

        Raises:
            ValueError: the column of images is missing.
            MissingPackageError: pyarrow is missing.
        """
        if self.data_column not in batch:
            raise ValueError(
                f"there is no column {self.data_column!r} with encoded images, found {', '.join(map(repr, batch))}; "
                "name it with data_column"
            )
        try:
            schema = arrow_schema(labels=self.labels, overlays=self.overlays)
        except ImportError as error:
            raise MissingPackageError(f"tables of rows need {error.name}: {install_command('parquet')}") from None
        data = [encoded_image(value) for value in batch[self.data_column]]
        keys = [str(key) for key in batch[self.key_column]] if self.key_column in batch else [""] * len(data)
        return arrow_table(self.rows(zip(keys, data, strict=True)), schema)

    def rows(self, items: Iterable[Item]) -> Iterator[Row]:
        """Segment images one after another and yield their rows, in order.

        No more than a few batches are held at a time. An image that cannot be read or decoded, or is too large, gives
        a row with its error. An empty key is replaced by the SHA-256 of the image.
        """
        waiting = iter(items)
        groups = iter(lambda: list(islice(waiting, self.segmenter.batch)), [])
        ahead = int(self.segmenter.network.device != "cpu")
        prepared = prefetched(lambda group: [self._prepare(*item) for item in group], groups, DECODED_AHEAD * ahead)
        for rows in prefetched(self._finish, prepared, ahead):
            yield from rows

    def _prepare(self, key: str, data: bytes | ImageError) -> tuple[str, str | None, Prepared | str]:
        """Decode one image. Returns its key, its SHA-256, and the image or the error."""
        if isinstance(data, ImageError):
            return key, None, str(data)
        digest = hashlib.sha256(data).hexdigest()
        key = key or digest
        if not data:
            return key, digest, "the file is empty"
        timings: dict[str, float] = {}
        try:
            with stage(timings, "decode"):
                image = decode_in_strips(open_encoded(data, self.pixels))
            prepared = self.segmenter.prepare(image, self.settings, fit=self.fit)
        except (ImageError, RequestError) as error:
            return key, digest, str(error)
        prepared.timings["decode"] = prepared.timings.get("decode", 0.0) + timings["decode"]
        return key, digest, prepared

    def _finish(self, batch: list[tuple[str, str | None, Prepared | str]]) -> list[Row]:
        results = iter(self.segmenter.finish([item for _, _, item in batch if isinstance(item, Prepared)]))
        rows = []
        for key, digest, item in batch:
            if isinstance(item, str):
                rows.append(error_row(key, digest, item, self._constant))
                continue
            assert digest is not None  # noqa: S101 - the bytes were read
            result = next(results)
            timings = dict(result.timings)
            with stage(timings, "write"):
                rows.append(result_row(key, digest, result, labels=self.labels, overlay=self.overlays))
            self.seconds.update(timings)
        return rows


def encoded_image(value: Any) -> bytes | ImageError:  # noqa: ANN401 - an element of a column
    """Return the bytes of an encoded image, or an error if the value is something else.

    Args:
        value: bytes, an element of an Arrow array, or an image of Hugging Face's datasets: `{"bytes": …, "path": …}`.
    """
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    found = "nothing" if value is None else type(value).__name__
    return ImageError(f"an encoded image must be bytes, found {found}")
