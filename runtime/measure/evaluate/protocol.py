"""Protocols of an evaluation: which part of an image is evaluated, and at which size."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.arrays import resize_last
from diffseg.engines.bundle.settings import REFINEMENTS, Refine
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAPER_SIZE = 512
"""Side of the square on which the paper compares labels, in pixels."""
DIFFCUT_SIZE = 128
"""Side of the square on which DiffCut's evaluation compares labels, in pixels."""
DIFFCUT_INPUT = 1024
"""Side of the images of DiffCut's evaluation, for methods without a network, in pixels."""


class Protocol(StrEnum):
    """`paper` and `diffcut` evaluate a centre square at 512 or 128 pixels, `full` the whole image, as `segment` does.

    `paper` is that of google/diffseg and `diffcut` that of PaulCouairon/DiffCut.
    """

    PAPER = "paper"
    DIFFCUT = "diffcut"
    FULL = "full"

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width at which labels are compared; None for those of the image."""
        return {"paper": (PAPER_SIZE,) * 2, "diffcut": (DIFFCUT_SIZE,) * 2}.get(self.value)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images for methods without a network."""
        side = DIFFCUT_INPUT if self is Protocol.DIFFCUT else PAPER_SIZE
        return side, side

    @property
    def refinements(self) -> tuple[Refine, ...]:
        """The refinements that masks may have."""
        own: dict[str, tuple[Refine, ...]] = {"paper": ("none", "kmeans"), "diffcut": ("none", "pamr")}
        return own.get(self.value, REFINEMENTS)


def prepare(
    image: Image.Image, truth: NDArray[np.uint8], protocol: Protocol, image_size: tuple[int, int]
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Crop and resize an image and its classes as the protocol requires.

    `paper` follows google/diffseg's `process_image`: the centre square is resized to 512 × 512; images bilinearly with
    half-pixel centres and without antialiasing (`tf.image.resize`), labels by nearest neighbour. There are two
    differences: the resized image is rounded to 8 bits, because bundles take uint8; and it is resized directly to the
    network's size if that is not 512.

    `diffcut` follows `DataIterator.process_image` and `Benchmark_Segmentation.evaluate` of PaulCouairon/DiffCut: a
    centre square of min(width, height) - 1 pixels (torchvision's `CenterCrop`) is resized to the network's size (1024);
    images bilinearly, without antialiasing, and labels by nearest neighbour with half-pixel centres
    (`nearest-exact`). Labels are then resized to 128 × 128 by nearest neighbour from the pixels' corners
    (`F.interpolate`'s `nearest`), so each is the value of the first of 8 × 8 pixels. The difference is the rounding of
    the resized image to 8 bits.

    `full` changes nothing.

    Args:
        image: RGB image.
        truth: classes (H, W), of the size of the image.
        protocol: the protocol.
        image_size: height and width of the network's input.
    """
    if protocol is Protocol.FULL:
        return image, truth
    if protocol is Protocol.DIFFCUT:
        pixels, labels = centre_crop(np.asarray(image)), resize_nearest(centre_crop(truth), image_size)
        return Image.fromarray(resize_bilinear(pixels, image_size)), resize_corner(labels, (DIFFCUT_SIZE, DIFFCUT_SIZE))
    pixels = resize_bilinear(centre_square(np.asarray(image)), image_size)
    return Image.fromarray(pixels), resize_nearest(centre_square(truth), (PAPER_SIZE, PAPER_SIZE))


def centre_crop(array: NDArray[Any]) -> NDArray[Any]:
    """Return the centred square of (H, W, …) whose side is one pixel below the shorter side, as in DiffCut.

    The coordinates of its corner are rounded to even numbers from halves (torchvision's `CenterCrop`). A side of one
    pixel is kept, where DiffCut's code fails.
    """
    side = max(min(array.shape[:2]) - 1, 1)
    top, left = (round((length - side) / 2) for length in array.shape[:2])
    return array[top : top + side, left : left + side]


def centre_square(array: NDArray[Any]) -> NDArray[Any]:
    """Return the largest centred square of (H, W, …). The coordinates of its corner are rounded down."""
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


def resize_bilinear(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) bilinearly with half-pixel centres, without antialiasing: shrinking skips pixels."""
    return np.ascontiguousarray(np.rint(resize_channels(pixels, size)).astype(np.uint8))


def resize_channels(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return `resize_bilinear` before rounding, (h, w, 3) float32 from 0 to 255."""
    channels = np.moveaxis(pixels, -1, 0).astype(np.float32)
    channels = resize_last(channels, size[1])
    channels = np.swapaxes(resize_last(np.ascontiguousarray(np.swapaxes(channels, 1, 2)), size[0]), 1, 2)
    return np.ascontiguousarray(np.moveaxis(channels, 0, -1))


def resize_corner(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize (H, W) by nearest neighbour from the pixels' corners, as PyTorch's `F.interpolate` does by default.

    Pixel i of the result is pixel floor(i · H / h) of the labels.
    """
    rows, columns = (np.arange(new) * old // new for old, new in zip(labels.shape, size, strict=True))
    return np.asarray(labels[rows[:, None], columns[None, :]])


def resize_nearest(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize (H, W) by nearest neighbour with half-pixel centres, as `tf.image.resize` does."""
    if labels.shape == size:
        return labels
    rows, columns = (_nearest(old, new) for old, new in zip(labels.shape, size, strict=True))
    return labels[rows[:, None], columns[None, :]]


def _nearest(size: int, target: int) -> NDArray[np.int64]:
    scale = np.float32(size) / np.float32(target)  # as in TensorFlow: the precision decides which pixel a border takes
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale
    return np.asarray(np.minimum(np.floor(position).astype(np.int64), size - 1))
