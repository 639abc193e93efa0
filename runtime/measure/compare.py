"""Compare a provider with the CPU on the same bundle and images: the network's outputs and the final masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import to_host
from diffseg.engines import agreement
from diffseg.engines.bundle.manifest import UNET
from diffseg.engines.providers.select import load_network
from diffseg.image import fit_image, read_image
from diffseg.measure.overlap import mask_iou
from diffseg.segmenter import Segmenter

if TYPE_CHECKING:
    from pathlib import Path

    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.providers.network import Network
    from numpy.typing import NDArray

LATENT, FEATURES = "latent", "features"
LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"latent_cosine": 0.9999, "row_cosine_p1": 0.9999, "kl": 1e-4, "row_sum_error": 1e-4, "mask_iou": 0.99},
    "fp16": {"latent_cosine": 0.999, "row_cosine_p1": 0.999, "kl": 1e-3, "row_sum_error": 1e-3, "mask_iou": 0.98},
    "bf16": {"latent_cosine": 0.99, "row_cosine_p1": 0.95, "kl": 5e-2, "row_sum_error": 1e-3, "mask_iou": 0.9},
}
"""Limits per precision for the agreement of two providers, whose kernels add numbers in different orders."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of one output of the network: the worst value of each measure over the images.

    Attributes:
        name: `latent`, `features`, or an attention output.
        row_cosine_p1: 1st percentile of the cosines of the rows; for the latent, the cosine of the whole tensor.
        kl: half the symmetric KL divergence of the rows, averaged, in nats; 0 for the latent and features.
        row_sum_error: largest difference between a row's sum and 1; 0 for the latent and features.
        bad: number of NaN and infinite entries.
        problem: description of the measure that is beyond its limit, or None.
    """

    name: str
    row_cosine_p1: float
    kl: float
    row_sum_error: float
    bad: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class ProviderComparison:
    """Agreement of all outputs in the order of computation: the latent, attention finest first, masks."""

    provider: str
    precision: str
    outputs: tuple[Agreement, ...]
    mask_iou: dict[
        str, float
    ]  # by image: mean IoU of the CPU's masks and the matched masks of the provider (Hungarian)
    placement: dict[str, dict[str, int]] = field(default_factory=dict)  # nodes by graph and ONNX Runtime's provider

    @property
    def first_difference(self) -> str | None:
        """The first output in the order of computation that exceeds a limit, with the reason; None if all agree."""
        for output in self.outputs:
            if output.problem:
                return f"{output.name}: {output.problem}"
        least = LIMITS[self.precision]["mask_iou"]
        for name, iou in self.mask_iou.items():
            if not iou >= least:
                return f"masks of {name}: mean IoU {iou:.4f}, at least {least:g} is required"
        return None

    @property
    def passed(self) -> bool:
        """Whether everything is within its limits."""
        return self.first_difference is None


def compare_providers(bundle: Bundle, provider: str, images: Sequence[Path]) -> ProviderComparison:
    """Run images through the CPU and through another provider.

    Both UNets get the latent that the CPU computed, so that each output shows only its own differences. The masks are
    computed from the image with both providers.

    Args:
        bundle: the bundle that both execute.
        provider: the provider to compare with the CPU.
        images: image files; each is stretched to the network's size.

    Raises:
        DiffsegError: one of the providers can't run here, an image can't be read, or scipy is not installed.
    """
    expected, found = load_network(bundle, "cpu"), load_network(bundle, provider)
    decoded = [read_image(path) for path in images]
    pixels = [fit_image(image, bundle.manifest.image_size, "stretch")[0][None] for image in decoded]
    names = [LATENT, *(output.name for output in bundle.manifest.graphs[UNET].tensors.outputs)]
    rows: dict[str, list[Agreement]] = {name: [] for name in names}
    for image in pixels:
        for name, truth, value in zip(names, *_outputs(expected, found, image), strict=True):
            rows[name].append(_agreement(name, truth, value, bundle.manifest.precision))
    ious = {}
    segmenters = Segmenter(bundle, expected), Segmenter(bundle, found)
    for path, original in zip(images, decoded, strict=True):
        ious[path.name] = mask_iou(*(segmenter(original).labels for segmenter in segmenters))
    worst = tuple(_worst(rows[name]) for name in names)
    return ProviderComparison(provider, bundle.manifest.precision, worst, ious, found.placement)


def _outputs(expected: Network, found: Network, image: NDArray[np.uint8]) -> Iterator[list[NDArray[np.float32]]]:
    """Yield the outputs of the CPU, then those of the other provider: its own latent, and attention from the CPU's."""
    with expected.session() as session:
        latent = to_host(session.encode(image)).copy()
        yield [latent, *(to_host(output) for output in session.attend(latent))]
    with found.session() as session:
        own = to_host(session.encode(image)).copy()
        session.wait()
        outputs = [to_host(output) for output in session.attend(latent)]
        session.wait()
        yield [own, *outputs]


def _agreement(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], precision: str) -> Agreement:
    limits = LIMITS[precision]
    bad = agreement.count_not_finite(found)
    if bad:
        return Agreement(name, float("nan"), float("nan"), float("nan"), bad, f"{bad} entries are NaN or infinite")
    if name == LATENT:
        cosine = agreement.cosine(expected, found)
        least = limits["latent_cosine"]
        problem = None if cosine >= least else f"cosine {cosine:.6f}, at least {least:g} is required"
        return Agreement(name, cosine, 0.0, 0.0, 0, problem)
    cosine = float(np.percentile(agreement.row_cosines(expected, found), 1))
    if name == FEATURES:
        least = limits["row_cosine_p1"]
        problem = None if cosine >= least else f"1st percentile of cosines {cosine:.6f}, at least {least:g} is asked"
        return Agreement(name, cosine, 0.0, 0.0, 0, problem)
    kl, sums = agreement.symmetric_kl(expected, found), agreement.row_sum_error(found)
    for value, limit, words in (
        (-cosine, -limits["row_cosine_p1"], f"1st percentile of row cosines {cosine:.6f}, at least"),
        (kl, limits["kl"], f"mean symmetric KL {kl:.2g} nats, at most"),
        (sums, limits["row_sum_error"], f"the sum of a row differs from 1 by {sums:.2g}, at most"),
    ):
        if not value <= limit:
            return Agreement(name, cosine, kl, sums, 0, f"{words} {abs(limit):g} is required")
    return Agreement(name, cosine, kl, sums, 0, None)


def _worst(many: list[Agreement]) -> Agreement:
    """Return the worst value of each measure over the images, with the first problem."""
    return Agreement(
        many[0].name,
        min(a.row_cosine_p1 for a in many),
        max(a.kl for a in many),
        max(a.row_sum_error for a in many),
        sum(a.bad for a in many),
        next((a.problem for a in many if a.problem), None),
    )
