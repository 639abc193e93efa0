"""Compare two bundles on the same images: latents, attention or features, and the final masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import to_host
from diffseg.engines import agreement
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.bundle.settings import FEATURE_METHODS
from diffseg.engines.errors import BundleError
from diffseg.engines.providers.select import load_network
from diffseg.image import fit_image, read_image
from diffseg.measure.overlap import Overlap, adjusted_rand, mask_iou
from diffseg.segmenter import Segmenter

if TYPE_CHECKING:
    from pathlib import Path

    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.bundle.manifest import Manifest
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How much an output of two networks agrees on one image.

    Attributes:
        name: `latent`, `features`, or an attention output.
        cosine: cosine of the whole latent; for attention and features the mean of the cosines of the rows. None where
            a number is not finite, as for the other measures.
        cosine_p1: 1st percentile of the cosines of the rows; None for the latent.
        kl: half the symmetric KL divergence of the rows of attention, averaged, in nats; None for other outputs.
        bad: number of entries that are NaN or infinite in either network.
    """

    name: str
    cosine: float | None
    cosine_p1: float | None
    kl: float | None
    bad: int


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """How much two bundles agree on one image.

    Attributes:
        image: name of the file.
        outputs: the outputs that both have in the same shape, in the order of computation.
        segments: number of segments of each bundle.
        mask_iou: mean IoU of the masks, matched one to one (Hungarian); an unmatched mask counts as 0.
        adjusted_rand: adjusted Rand index of the two segmentations.
    """

    image: str
    outputs: tuple[OutputDifference, ...]
    segments: tuple[int, int]
    mask_iou: float
    adjusted_rand: float


@dataclass(frozen=True, slots=True)
class BundleDifference:
    """How much two bundles agree on several images.

    Attributes:
        bundles: their names.
        provider: the provider that executed both.
        left_out: outputs that only one of them has, or has in another shape.
        images: the results, in the order of the images.
    """

    bundles: tuple[str, str]
    provider: str
    left_out: tuple[str, ...]
    images: tuple[ImageDifference, ...]


def compare_bundles(
    first: Bundle, second: Bundle, images: Sequence[Path], *, provider: str = "cpu"
) -> BundleDifference:
    """Run images through two bundles.

    Each bundle computes everything from the image, so a difference of the latents also affects the later outputs.
    The masks are made with the default settings of the first bundle, or with each bundle's own if their methods need
    other outputs.

    Args:
        first: a bundle.
        second: the bundle to compare it with.
        images: image files; each is stretched to the size of each network.
        provider: the provider that executes both.

    Raises:
        BundleError: they have no output of the same name and shape.
        DiffsegError: the provider cannot run here, an image cannot be read, or scipy is not installed.
    """
    shapes = _shapes(first.manifest), _shapes(second.manifest)
    common = [name for name in shapes[0] if shapes[1].get(name) == shapes[0][name]]
    if not common:
        raise BundleError(
            f"bundles {_describe(first.manifest)} and {_describe(second.manifest)} have no output of the same shape; "
            "export one of them again with the --size or --method of the other"
        )
    left_out = tuple(name for name in {**shapes[0], **shapes[1]} if name not in common)
    segmenters = [Segmenter(bundle, load_network(bundle, provider)) for bundle in (first, second)]
    same_outputs = _needs_features(first.manifest) == _needs_features(second.manifest)
    results = []
    for path in images:
        image = read_image(path)
        outputs = [_outputs(segmenter, image) for segmenter in segmenters]
        settings = [(segmenters[0] if same_outputs else segmenter).settings for segmenter in segmenters]
        ours, theirs = (
            segmenter(image, s.thresholds, s.method, anchors=s.anchors, tau=s.tau, refine=s.refine).labels
            for segmenter, s in zip(segmenters, settings, strict=True)
        )
        results.append(
            ImageDifference(
                path.name,
                tuple(_difference(name, outputs[0][name], outputs[1][name]) for name in common),
                (int(ours.max()) + 1, int(theirs.max()) + 1),
                mask_iou(ours, theirs),
                adjusted_rand(Overlap.of(ours, theirs, void=None)),
            )
        )
    names = first.manifest.name, second.manifest.name
    return BundleDifference(names, segmenters[0].provider, left_out, tuple(results))


def _shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs for a single image, by name."""
    tensors = (*manifest.graphs[ENCODER].tensors.outputs, *manifest.graphs[UNET].tensors.outputs)
    return {tensor.name: tensor.shape(1) for tensor in tensors}


def _describe(manifest: Manifest) -> str:
    height, width = manifest.image_size
    return f"{manifest.name!r} ({', '.join(manifest.methods)}, {height}x{width} pixels)"


def _needs_features(manifest: Manifest) -> bool:
    return manifest.defaults.method in FEATURE_METHODS


def _outputs(segmenter: Segmenter, image: Image.Image) -> Mapping[str, NDArray[np.float32]]:
    """Return copies of the network's outputs for one image, by name."""
    manifest = segmenter.bundle.manifest
    pixels = fit_image(image, manifest.image_size, "stretch")[0][None]
    with segmenter.network.session() as session:
        latent = to_host(session.encode(pixels)).copy()
        session.wait()
        outputs = [to_host(output).copy() for output in session.attend(latent)]
        session.wait()
    return dict(zip(_shapes(manifest), [latent, *outputs], strict=True))


def _difference(name: str, first: NDArray[np.float32], second: NDArray[np.float32]) -> OutputDifference:
    bad = agreement.count_not_finite(first) + agreement.count_not_finite(second)
    if bad:
        return OutputDifference(name, None, None, None, bad)
    if first.ndim == 4:  # noqa: PLR2004 - the latent (1, C, h, w)
        return OutputDifference(name, agreement.cosine(first, second), None, None, 0)
    cosines = agreement.row_cosines(first, second)
    kl = agreement.symmetric_kl(first, second) if name.startswith("attention") else None
    return OutputDifference(name, float(cosines.mean()), float(np.percentile(cosines, 1)), kl, 0)
