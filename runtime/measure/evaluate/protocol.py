"""Protocols of an evaluation: which part of an image is evaluated, and at which size."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.arrays import resize_last
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAPER_SIZE = 512
"""Side of the square on which the paper compares labels, in pixels."""


class Protocol(StrEnum):
    """`paper` evaluates the centre square at 512 pixels, `full` the whole image, as `segment` does."""

    PAPER = "paper"
    FULL = "full"


def prepare(
    picture: Image.Image, truth: NDArray[np.uint8], protocol: Protocol, image_size: tuple[int, int]
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Crop and resize an image and its classes as the protocol requires.

    `paper` follows google/diffseg's `process_image`: the centre square is resized to 512 × 512; images bilinearly with
    half-pixel centres and without antialiasing (`tf.image.resize`), labels by nearest neighbour. There are two
    differences: the resized image is rounded to 8 bits, because bundles take uint8; and it is resized directly to the
    network's size if that is not 512. `full` changes nothing.

    Args:
        picture: RGB image.
        truth: classes (H, W), of the size of the image.
        protocol: the protocol.
        image_size: height and width of the network's input.
    """
    if protocol is Protocol.FULL:
        return picture, truth
    pixels = resize_bilinear(centre_square(np.asarray(picture)), image_size)
    return Image.fromarray(pixels), resize_nearest(centre_square(truth), (PAPER_SIZE, PAPER_SIZE))


def centre_square(array: NDArray[Any]) -> NDArray[Any]:
    """Return the largest centred square of (H, W, …). The coordinates of its corner are rounded down."""
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


def resize_bilinear(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) bilinearly with half-pixel centres, without antialiasing: shrinking skips pixels."""
    channels = np.moveaxis(pixels, -1, 0).astype(np.float32)
    channels = resize_last(channels, size[1])
    channels = np.swapaxes(resize_last(np.ascontiguousarray(np.swapaxes(channels, 1, 2)), size[0]), 1, 2)
    return np.ascontiguousarray(np.moveaxis(np.rint(channels), 0, -1).astype(np.uint8))


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
