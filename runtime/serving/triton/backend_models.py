"""The Python models of a repository: arrays in, arrays out. Only `model.py` uses Triton's own interface.

Clients send and receive the tensors of our `/v2` endpoint. The models of an ensemble exchange the tensors of the
bundle's graphs, `pixels` (the image at the network's size) and `placement` (where these pixels lie in the image).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, get_args

import numpy as np
from diffseg.arrays import Array, to_host
from diffseg.attention import AggregatedAttention, warn_of_mended_rows
from diffseg.cancellation import StoppedError, stoppable
from diffseg.engines.bundle.manifest import Manifest, read_manifest
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import ImageError
from diffseg.engines.providers.cuda import import_cupy
from diffseg.features import EncoderFeatures
from diffseg.image import Fit, ImageSource, fit_image, read_image
from diffseg.methods.aggregate import aggregate_and_count
from diffseg.placement import Placement
from diffseg.prepared import Prepared
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.serving.protocol.echo import shorten
from diffseg.serving.protocol.errors import RequestError, bad_request
from diffseg.serving.protocol.masking import LEAST_MASKING, next_pace
from diffseg.serving.protocol.masks import to_json
from diffseg.serving.protocol.settings import updated_settings
from diffseg.serving.protocol.tensors import ENCODED, IMAGE, LABELS, PARAMETERS, SEGMENTS, stack_labels
from diffseg.serving.protocol.untrusted import check_pixels, open_encoded
from diffseg.serving.triton.config import KIND, PIXELS, PLACEMENT, PROVIDER
from diffseg.serving.triton.masking import AGGREGATIONS, Check
from diffseg.stages import stage
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
BUNDLE = "bundle"
"""Name of the folder, within a version's folder, that holds the bundle of a `segment` model."""
MOST_DIGITS = 9  # of a number that arrives as text
MOST_PIXELS = 50_000_000
"""Maximum number of pixels per image. An image whose header states more is not decoded."""

Outputs: TypeAlias = dict[str, "NDArray[Any]"]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a model.

    Attributes:
        tensors: the inputs by name.
        parameters: threshold, anchors, refine, fit, method, tau.
        wanted: names of the requested outputs.
        cancelled: whether the client has cancelled it.
    """

    tensors: dict[str, Array]
    parameters: dict[str, Any] = field(default_factory=dict)
    wanted: Collection[str] = (LABELS, SEGMENTS)
    cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Refused:
    """The response to a request that cannot be answered, with the reason in one line."""

    reason: str


Result: TypeAlias = Outputs | Refused
Model: TypeAlias = Callable[[Sequence[Request]], list[Result]]


def load_model(arguments: Mapping[str, str]) -> Model:
    """Load the model that a configuration describes.

    Args:
        arguments: the arguments that Triton passes to `initialize`.

    Raises:
        BundleError: the files of this version are damaged.
        ProviderError: its provider cannot run on this machine.
        MissingPackageError: a package that it needs is not installed.
    """
    config = json.loads(arguments["model_config"])
    parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
    folder, limit = Path(arguments["model_repository"], arguments["model_version"]), config["max_batch_size"]
    if parameters[KIND] == "segment":
        segmenter = Segmenter.load(folder / BUNDLE, provider=parameters[PROVIDER], batch=limit)
        return SegmentModel(segmenter)
    manifest = read_manifest(folder)
    if parameters[KIND] == "resize":
        return ResizeModel(manifest, limit)
    gpu = int(arguments["model_instance_device_id"]) if arguments["model_instance_kind"] == "GPU" else None
    return MergeModel(manifest, limit, gpu)


class SegmentModel:
    """The whole bundle. Images of several requests go through the network together, each with its own settings."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self._pace = 0.0  # recent seconds per image of the network

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """Process each request separately, so that an error affects only its own request."""
        prepared = [_answer(self._prepare, request) for request in requests]
        images = [image for item in prepared if not isinstance(item, Refused) for image in item]
        outcomes = self.segmenter.outcomes(images)
        self._pace = next_pace(self._pace, [found for found in outcomes if not isinstance(found, StoppedError)])
        results = iter(zip(images, outcomes, strict=True))
        answers: list[Result] = []
        for request, item in zip(requests, prepared, strict=True):
            if isinstance(item, Refused):
                answers.append(item)
            else:
                answers.append(_answer(_finished, [next(results) for _ in item], request.wanted))
        return answers

    def _prepare(self, request: Request) -> list[Prepared]:
        settings, fit = _settings(self.segmenter.settings, request.parameters)
        seconds = max(LEAST_MASKING, self._pace)
        prepared = [self.segmenter.prepare(image, settings, fit=fit) for image in _images(request)]
        return [replace(image, check=Check(seconds, request.cancelled)) for image in prepared]


class ResizeModel:
    """The first model of an ensemble: resizes images to the network's size, and returns their placements."""

    def __init__(self, manifest: Manifest, limit: int) -> None:
        self.manifest = manifest
        self.limit = limit
        self.settings = manifest.defaults

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """Process each request separately, so that an error affects only its own request."""
        return [_answer(self._fit, request) for request in requests]

    def _fit(self, request: Request) -> Outputs:
        _, fit = _settings(
            self.settings, request.parameters
        )  # reject now what the last model would reject after the network has run
        fitted = [fit_image(read_image(image), self.manifest.image_size, fit) for image in _images(request)]
        return {
            PIXELS: np.stack([pixels for pixels, _ in fitted]),
            PLACEMENT: np.stack([pack(placement) for _, placement in fitted]),
        }


class MergeModel:
    """The last model of an ensemble: turns attention or features into labels at the image's size, on their device.

    Raises:
        MissingPackageError: the model is to run on a GPU, and CuPy is not installed.
    """

    def __init__(self, manifest: Manifest, limit: int, gpu: int | None = None) -> None:
        self.manifest = manifest
        self.limit = limit
        self.settings = manifest.defaults
        self._device: AbstractContextManager[Any] = nullcontext() if gpu is None else import_cupy().cuda.Device(gpu)

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """Process each request separately, so that an error affects only its own request."""
        with self._device:
            return [_answer(self._merge, request) for request in requests]

    def _merge(self, request: Request) -> Outputs:
        settings, _ = _settings(self.settings, request.parameters)
        features = self.manifest.features
        names = [output.name for output in self.manifest.attention] if features is None else [features.name]
        outputs = [request.tensors[name] for name in names]
        grids = [output.grid for output in self.manifest.attention]
        results, attentions = [], []
        pixels, placements = to_host(request.tensors[PIXELS]), to_host(request.tensors[PLACEMENT])
        for i, (seen, packed) in enumerate(zip(pixels, placements, strict=True)):
            placement, timings = unpack(packed, self.manifest.image_size), dict[str, float]()
            maps = [output[i, ...] for output in outputs]
            found: AggregatedAttention | EncoderFeatures
            if features is not None:
                found = EncoderFeatures(maps[0], features.grid, seen, placement)
            else:
                with stage(timings, "aggregate"):
                    # Write into the finest map: the memory belongs to this request, and nothing else reads it.
                    values, mended = aggregate_and_count(maps, grids=grids, out=maps[0])
                found = AggregatedAttention(values, seen, placement, mended)
                attentions.append(found)
            check = Check(max(LEAST_MASKING, AGGREGATIONS * timings.get("aggregate", 0.0)), request.cancelled)
            try:
                with stoppable(check):
                    results.append(Segmentation.of(found, Image.fromarray(seen), settings, timings))
            except StoppedError:
                raise check.error from None
        warn_of_mended_rows(attentions)
        return _masks(results, request.wanted)


def pack(placement: Placement) -> NDArray[np.float64]:
    """Return a placement as a float64 array (6,). The network's size is left out: both sides know it."""
    box = placement.top, placement.left, placement.height, placement.width
    return np.array([*placement.image_size, *box], np.float64)


def unpack(packed: NDArray[np.float64], size: tuple[int, int]) -> Placement:
    """Return the placement that `pack` packed, given the network's size (height, width)."""
    height, width, *box = packed.tolist()
    return Placement((int(height), int(width)), size, *box)


def _answer(work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | Refused:
    """Process one request. An error becomes its response, so that other requests are not affected."""
    try:
        return work(*arguments, **keywords)
    except (ImageError, RequestError) as error:
        return Refused(str(error))
    except MemoryError:
        raise
    except Exception:  # this request fails, and no other
        logger.exception("a request failed")
        return Refused("the request failed; see the log of the server")


def _settings(defaults: MergeSettings, parameters: dict[str, Any]) -> tuple[MergeSettings, Fit]:
    """Read the parameters of a request. Thresholds per round arrive as text, because Triton has no lists."""
    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise bad_request(f"unknown parameter {shorten(unknown[0])}; the parameters are {', '.join(PARAMETERS)}")
    threshold, anchors = parameters.get("threshold"), parameters.get("anchors")
    if isinstance(threshold, str):
        try:
            rounds = [float(number) for number in threshold.split(",")]
        except ValueError:
            raise bad_request(
                f"threshold must be a number, or one per round as in '1,0.8', found {shorten(threshold)}"
            ) from None
        threshold = rounds[0] if len(rounds) == 1 else rounds
    if isinstance(anchors, str) and anchors.isdecimal() and len(anchors) <= MOST_DIGITS:
        anchors = int(anchors)
    tau = parameters.get("tau")
    if isinstance(tau, str):
        try:
            tau = float(tau)
        except ValueError:
            raise bad_request(f"tau must be a number, found {tau!r}") from None
    fit = parameters.get("fit", "stretch")
    if fit not in get_args(Fit):
        raise bad_request(f"fit must be one of {', '.join(get_args(Fit))}, found {shorten(fit)}")
    return updated_settings(defaults, threshold, anchors, parameters.get("refine"), parameters.get("method"), tau), fit


def _images(request: Request) -> list[ImageSource]:
    """Return the images of a request, which are arrays or encoded images."""
    if (IMAGE in request.tensors) == (ENCODED in request.tensors):
        raise bad_request(f"there must be one input, {IMAGE} or {ENCODED}, found {len(request.tensors)}")
    if IMAGE in request.tensors:
        images = request.tensors[IMAGE]
        if images.ndim != 4 or images.shape[3] != 3:  # noqa: PLR2004
            raise bad_request(f"{IMAGE} must be (B, H, W, 3), found {shorten(images.shape)}")
        for height, width in {image.shape[:2] for image in images}:
            check_pixels(height, width, MOST_PIXELS)
        return list(images)
    return [open_encoded(data, MOST_PIXELS) for data in request.tensors[ENCODED].ravel()]


def _finished(results: Sequence[tuple[Prepared, Segmentation | StoppedError]], wanted: Collection[str]) -> Outputs:
    """Return the requested outputs, unless the masks of one of the images were stopped."""
    done = []
    for prepared, found in results:
        if isinstance(found, StoppedError):
            assert isinstance(prepared.check, Check)  # noqa: S101 - for the type checker
            raise prepared.check.error
        done.append(found)
    return _masks(done, wanted)


def _masks(results: Sequence[Segmentation], wanted: Collection[str]) -> Outputs:
    """Return the requested outputs: labels (B, H, W) uint16, segments (B, 1) of JSON texts."""
    outputs: Outputs = {}
    if LABELS in wanted:
        outputs[LABELS] = stack_labels(results)
    if SEGMENTS in wanted:
        texts = np.array([json.dumps(to_json(result)).encode() for result in results], dtype=object)
        outputs[SEGMENTS] = texts.reshape(-1, 1)
    return outputs
