"""Compare a provider with the CPU on the same bundle and images: numbers and final masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.arrays import to_host
from diffseg.engines.errors import MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.engines.providers.select import load_network
from diffseg.image import fit_image, read_image
from diffseg.segmenter import Segmenter

if TYPE_CHECKING:
    from pathlib import Path

    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.providers.network import Network
    from numpy.typing import NDArray

LATENT = "latent"
LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"latent_cosine": 0.9999, "row_cosine_p1": 0.9999, "kl": 1e-4, "row_sum_error": 1e-4, "mask_iou": 0.99},
    "fp16": {"latent_cosine": 0.999, "row_cosine_p1": 0.999, "kl": 1e-3, "row_sum_error": 1e-3, "mask_iou": 0.98},
    "bf16": {"latent_cosine": 0.99, "row_cosine_p1": 0.95, "kl": 5e-2, "row_sum_error": 1e-3, "mask_iou": 0.9},
}
"""What two providers of one bundle may differ by, a precision: their kernels add up in different orders."""
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one output of the network agrees, at worst over the images.

    Attributes:
        name: `latent`, or an attention output.
        row_cosine_p1: 1st percentile of the cosine of rows; of the latent, the cosine of the whole.
        kl: mean of half the symmetric KL divergence of rows, in nats; 0 for the latent.
        row_sum_error: largest distance of a row's sum from 1; 0 for the latent.
        bad: NaN and infinite entries.
        problem: what is out of bounds, or None.
    """

    name: str
    row_cosine_p1: float
    kl: float
    row_sum_error: float
    bad: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out, in the order of the data's way: the latent, attention finest first, masks."""

    provider: str
    precision: str
    outputs: tuple[Agreement, ...]
    mask_iou: dict[str, float]  # by image: mean IoU of the CPU's masks with those that fit them best (Hungarian)
    placement: dict[str, dict[str, int]] = field(default_factory=dict)  # graph: ONNX Runtime's provider: nodes, if told

    @property
    def first_difference(self) -> str | None:
        """The first output on the data's way that is out of bounds, and how; None if all agree."""
        for output in self.outputs:
            if output.problem:
                return f"{output.name}: {output.problem}"
        least = LIMITS[self.precision]["mask_iou"]
        for name, iou in self.mask_iou.items():
            if not iou >= least:
                return f"masks of {name}: mean IoU {iou:.4f}, at least {least:g} is asked"
        return None

    @property
    def passed(self) -> bool:
        """Whether everything is within its bounds."""
        return self.first_difference is None


def compare_providers(bundle: Bundle, provider: str, images: Sequence[Path]) -> Comparison:
    """Run images through the CPU and through another provider.

    The UNet gets the CPU's latent in both, so that each output shows its own differences alone; masks go the whole way.

    Args:
        bundle: what both execute.
        provider: the one in question.
        images: image files; each is stretched to the network's size.

    Raises:
        DiffsegError: one of the providers can't run here, an image can't be read, or scipy is not installed.
    """
    expected, found = load_network(bundle, "cpu"), load_network(bundle, provider)
    pictures = [read_image(path) for path in images]
    pixels = [fit_image(picture, bundle.manifest.image_size, "stretch")[0][None] for picture in pictures]
    names = [LATENT, *(attention.name for attention in bundle.manifest.attention)]
    rows: dict[str, list[Agreement]] = {name: [] for name in names}
    for image in pixels:
        for name, truth, value in zip(names, *_outputs(expected, found, image), strict=True):
            rows[name].append(_agreement(name, truth, value, bundle.manifest.precision))
    ious = {}
    segmenters = Segmenter(bundle, expected), Segmenter(bundle, found)
    for path, picture in zip(images, pictures, strict=True):
        ious[path.name] = mask_iou(*(segmenter(picture).labels for segmenter in segmenters))
    worst = tuple(_worst(rows[name]) for name in names)
    return Comparison(provider, bundle.manifest.precision, worst, ious, getattr(found, "placement", {}))


def mask_iou(expected: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]]) -> float:
    """Mean IoU of the masks of two label maps (H, W), matched one to one (Hungarian); 1 for equal partitions.

    A mask that is left over in either map counts as 0.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingPackageError(f"scipy is not installed: {install_command('eval')}") from None
    shape = int(expected.max()) + 1, int(found.max()) + 1
    flat = expected.ravel().astype(np.int64) * shape[1] + found.ravel()
    both = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    union = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    iou = both / np.maximum(union, 1)
    matched = iou[linear_sum_assignment(iou, maximize=True)]
    return float(matched.sum() / max(np.count_nonzero(both.sum(1)), np.count_nonzero(both.sum(0))))


def _outputs(expected: Network, found: Network, image: NDArray[np.uint8]) -> Iterator[list[NDArray[np.float32]]]:
    """Latent and attention of the CPU, then of the other provider from the same latent."""
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
    bad = int(np.count_nonzero(~np.isfinite(found)))
    if bad:
        return Agreement(name, float("nan"), float("nan"), float("nan"), bad, f"{bad} entries are NaN or infinite")
    if name == LATENT:
        cosine = float(_cosine(expected.reshape(1, -1), found.reshape(1, -1))[0])
        least = limits["latent_cosine"]
        problem = None if cosine >= least else f"cosine {cosine:.6f}, at least {least:g} is asked"
        return Agreement(name, cosine, 0.0, 0.0, 0, problem)
    cosine = float(np.percentile(_cosine(expected, found), 1))
    x, y = (np.maximum(v, TINY) for v in (expected, found))
    kl = float(((x - y) * (np.log(x) - np.log(y))).sum(-1).mean() / 2)
    sums = float(np.abs(found.sum(-1) - 1).max())
    for value, limit, words in (
        (-cosine, -limits["row_cosine_p1"], f"1st percentile of row cosines {cosine:.6f}, at least"),
        (kl, limits["kl"], f"mean symmetric KL {kl:.2g} nats, at most"),
        (sums, limits["row_sum_error"], f"a row sums to 1 ± {sums:.2g}, at most"),
    ):
        if not value <= limit:
            return Agreement(name, cosine, kl, sums, 0, f"{words} {abs(limit):g} is asked")
    return Agreement(name, cosine, kl, sums, 0, None)


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(norms, TINY))


def _worst(many: list[Agreement]) -> Agreement:
    """The worst of each measure over the images, with the first problem."""
    return Agreement(
        many[0].name,
        min(a.row_cosine_p1 for a in many),
        max(a.kl for a in many),
        max(a.row_sum_error for a in many),
        sum(a.bad for a in many),
        next((a.problem for a in many if a.problem), None),
    )
