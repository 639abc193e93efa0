"""Label Studio's run lengths of brush masks, which pack bits (thi.ng/rle-pack)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHANNELS = 4
"""Values per pixel: a brush mask is an RGBA image. All four are 255 inside the mask, and 0 outside."""
WORD_BITS = 8
SIZES = (4, 8, 12, 16)
"""Widths in bits of the four kinds of run lengths. The format allows at most 16."""
LONGEST = 1 << SIZES[-1]


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask as Label Studio's RLE.

    The header holds the number of values in 32 bits, the width of a value less one in 5, and the four widths of run
    lengths less one in 4 bits each. Each run is a 1 (a repeated value), the kind of its length in 2 bits, its length
    less one, and the value.

    Args:
        mask: (H, W) bool, with at most 2³⁰ pixels.

    Returns:
        The bytes as integers, as in `value.rle` of a result.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, flat.size)) * CHANNELS
    lengths, inside = _split(lengths, flat[starts])
    kinds = np.searchsorted([1 << size for size in SIZES], lengths)
    widths = np.asarray(SIZES)[kinds]
    value = inside.astype(np.int64) * ((1 << WORD_BITS) - 1)
    run = (((1 << 2) | kinds) << widths | (lengths - 1)) << WORD_BITS | value
    runs = _bits(run, 3 + widths + WORD_BITS)
    header = [(flat.size * CHANNELS, 32), (WORD_BITS - 1, 5), *((size - 1, 4) for size in SIZES)]
    head = _bits(*(np.array(column, dtype=np.int64) for column in zip(*header, strict=True)))
    encoded: list[int] = np.packbits(np.concatenate([head, runs])).tolist()
    return encoded


def _split(lengths: NDArray[np.int64], inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Split runs that are too long for the format."""
    pieces = -(-lengths // LONGEST)
    split = np.full(pieces.sum(), LONGEST, dtype=np.int64)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST
    return split, np.repeat(inside, pieces)


def _bits(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write each number in its width of bits, most significant first, and return all bits in a row."""
    place = np.arange(int(widths.max(initial=0)) - 1, -1, -1)
    bits = (numbers[:, None] >> place) & 1
    written: NDArray[np.uint8] = bits[place < widths[:, None]].astype(np.uint8)
    return written
