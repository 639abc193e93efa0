"""The Python models of a repository: arrays in, arrays out. `model.py` is what knows Triton.

Tensors are those of our own `/v2` endpoint, and between the models of an ensemble those of the bundle's graphs with
`pixels`, what the network saw, and `placement`, where that lies in the picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, get_args

import numpy as np
from diffseg.arrays import Array, to_host
from diffseg.attention import AggregatedAttention, warn_of_mended_rows
from diffseg.engines.bundle.manifest import Manifest, MergeSettings, read_manifest
from diffseg.engines.errors import ImageError
from diffseg.engines.providers.cuda import import_cupy
from diffseg.image import Fit, ImageSource, Placement, fit_image, read_image
from diffseg.methods.aggregate import aggregate_and_count
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Prepared, Segmenter
from diffseg.serving.protocol.errors import RequestError, bad_request
from diffseg.serving.protocol.masks import to_json
from diffseg.serving.protocol.settings import updated_settings
from diffseg.serving.protocol.tensors import ENCODED, IMAGE, LABELS, PARAMETERS, SEGMENTS, stack_labels
from diffseg.serving.protocol.untrusted import check_pixels, open_encoded
from diffseg.serving.triton.config import KIND, PIXELS, PLACEMENT, PROVIDER
from diffseg.stages import stage
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUNDLE = "bundle"
"""Folder of a version with the bundle of a model that runs all of it."""
MOST_PIXELS = 50_000_000
"""Of an image; one that says it has more is not decoded."""

Outputs: TypeAlias = dict[str, "NDArray[Any]"]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks of a model.

    Attributes:
        tensors: by name, those that were sent.
        parameters: threshold, anchors, refine, fit.
        wanted: names of the outputs that are asked for.
    """

    tensors: dict[str, Array]
    parameters: dict[str, Any] = field(default_factory=dict)
    wanted: Collection[str] = (LABELS, SEGMENTS)


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request that can't be answered: what is wrong with it."""

    reason: str


Result: TypeAlias = Outputs | Refused
Model: TypeAlias = Callable[[Sequence[Request]], list[Result]]


def load_model(arguments: Mapping[str, str]) -> Model:
    """Load the model that a configuration speaks of.

    Args:
        arguments: what Triton gives to `initialize`.

    Raises:
        BundleError: the files of this version are damaged.
        ProviderError: its provider can't run here.
        MissingPackageError: something that it needs is not installed.
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
    """The whole bundle: images of several requests go through the network together, each with its own settings."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """Answer each request by itself."""
        prepared = [_answer(self._prepare, request) for request in requests]
        images = [image for item in prepared if not isinstance(item, Refused) for image in item]
        results = iter(self.segmenter.finish(images))
        answers: list[Result] = []
        for request, item in zip(requests, prepared, strict=True):
            if isinstance(item, Refused):
                answers.append(item)
            else:
                answers.append(_answer(_masks, [next(results) for _ in item], request.wanted))
        return answers

    def _prepare(self, request: Request) -> list[Prepared]:
        settings, fit = _settings(self.segmenter.settings, request.parameters)
        return [self.segmenter.prepare(image, settings, fit=fit) for image in _images(request)]


class ResizeModel:
    """The head of an ensemble: images of any size → what the network sees, and where that lies in them."""

    def __init__(self, manifest: Manifest, limit: int) -> None:
        self.manifest = manifest
        self.limit = limit
        self.settings = manifest.defaults

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """Answer each request by itself."""
        return [_answer(self._fit, request) for request in requests]

    def _fit(self, request: Request) -> Outputs:
        _, fit = _settings(self.settings, request.parameters)  # what the tail would refuse is refused at once
        fitted = [fit_image(read_image(image), self.manifest.image_size, fit) for image in _images(request)]
        return {
            PIXELS: np.stack([pixels for pixels, _ in fitted]),
            PLACEMENT: np.stack([pack(placement) for _, placement in fitted]),
        }


class MergeModel:
    """The tail of an ensemble: attention → labels of the picture's size, on the device where the attention is.

    Raises:
        MissingPackageError: it shall run on a GPU, and CuPy is not installed.
    """

    def __init__(self, manifest: Manifest, limit: int, gpu: int | None = None) -> None:
        self.manifest = manifest
        self.limit = limit
        self.settings = manifest.defaults
        self._device: AbstractContextManager[Any] = nullcontext() if gpu is None else import_cupy().cuda.Device(gpu)

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """Answer each request by itself."""
        with self._device:
            return [_answer(self._merge, request) for request in requests]

    def _merge(self, request: Request) -> Outputs:
        settings, _ = _settings(self.settings, request.parameters)
        attention = [request.tensors[output.name] for output in self.manifest.attention]
        grids = [output.grid for output in self.manifest.attention]
        results, attentions = [], []
        pixels, placements = to_host(request.tensors[PIXELS]), to_host(request.tensors[PLACEMENT])
        for i, (seen, packed) in enumerate(zip(pixels, placements, strict=True)):
            placement, timings = unpack(packed, self.manifest.image_size), dict[str, float]()
            maps = [output[i, ...] for output in attention]
            with stage(timings, "aggregate"):
                # In the place of the finest: the request's memory is its own, and nobody else reads it.
                values, mended = aggregate_and_count(maps, grids=grids, out=maps[0])
            attentions.append(AggregatedAttention(values, seen, placement, mended))
            results.append(Segmentation.of(attentions[-1], Image.fromarray(seen), settings, timings))
        warn_of_mended_rows(attentions)
        return _masks(results, request.wanted)


def pack(placement: Placement) -> NDArray[np.float64]:
    """Where the pixels lie in the picture → (6,); the network's size is known to both sides."""
    return np.array([*placement.picture, placement.top, placement.left, placement.height, placement.width], np.float64)


def unpack(packed: NDArray[np.float64], size: tuple[int, int]) -> Placement:
    """Undo `pack`."""
    height, width, *box = packed.tolist()
    return Placement((int(height), int(width)), size, *box)


def _answer(work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | Refused:
    """Do the work of one request; what is wrong with it is no concern of the others."""
    try:
        return work(*arguments, **keywords)
    except (ImageError, RequestError) as error:
        return Refused(str(error))


def _settings(defaults: MergeSettings, parameters: dict[str, Any]) -> tuple[MergeSettings, Fit]:
    """Read the parameters of a request; a threshold a round comes as text, for Triton knows no lists."""
    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise bad_request(f"unknown parameter {unknown[0]!r}; known are {', '.join(PARAMETERS)}")
    threshold, anchors = parameters.get("threshold"), parameters.get("anchors")
    if isinstance(threshold, str):
        try:
            rounds = [float(number) for number in threshold.split(",")]
        except ValueError:
            raise bad_request(
                f"threshold must be a number, or one per round as in '1,0.8', found {threshold!r}"
            ) from None
        threshold = rounds[0] if len(rounds) == 1 else rounds
    if isinstance(anchors, str) and anchors.isdecimal():
        anchors = int(anchors)
    fit = parameters.get("fit", "stretch")
    if fit not in get_args(Fit):
        raise bad_request(f"fit must be one of {', '.join(get_args(Fit))}, found {fit!r}")
    return updated_settings(defaults, threshold, anchors, parameters.get("refine")), fit


def _images(request: Request) -> list[ImageSource]:
    """Images of a request: the arrays, or the encoded ones."""
    if (IMAGE in request.tensors) == (ENCODED in request.tensors):
        raise bad_request(f"one input is taken, {IMAGE} or {ENCODED}, found {len(request.tensors)}")
    if IMAGE in request.tensors:
        images = request.tensors[IMAGE]
        for height, width in {image.shape[:2] for image in images}:
            check_pixels(height, width, MOST_PIXELS)
        return list(images)
    return [open_encoded(data, MOST_PIXELS) for data in request.tensors[ENCODED].ravel()]


def _masks(results: Sequence[Segmentation], wanted: Collection[str]) -> Outputs:
    """Results of a request → what it asked for: labels (B, H, W), segments (B, 1)."""
    outputs: Outputs = {}
    if LABELS in wanted:
        outputs[LABELS] = stack_labels(results)
    if SEGMENTS in wanted:
        texts = np.array([json.dumps(to_json(result)).encode() for result in results], dtype=object)
        outputs[SEGMENTS] = texts.reshape(-1, 1)
    return outputs
