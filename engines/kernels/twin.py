"""The averaged attention in NumPy: the reference that the GPU kernel is tested against, and its replacement on CPUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 22
"""Number of logits in memory at a time: 16 MiB of float32."""


def averaged_attention(queries: NDArray[np.generic], keys: NDArray[np.generic]) -> NDArray[np.float32]:
    """Average softmax(Q Kᵀ) over all heads of all layers of one resolution.

    Logits, exponentials and sums are float32 for every type of input.

    Args:
        queries: (B, layers·heads, nq, d), already scaled (by d^-½ in Stable Diffusion). float16, float32, bfloat16 of
            ml_dtypes, or the bits of bfloat16 as uint16.
        keys: (B, layers·heads, nk, d) of the same type.

    Returns:
        (B, nq, nk) float32; each row sums to 1.

    Raises:
        ValueError: the shapes or types of queries and keys do not fit together.
    """
    _check(queries, keys)
    batch, heads, rows, _ = queries.shape
    columns = keys.shape[2]
    step = max(1, BLOCK // columns)
    averaged = np.zeros((batch, rows, columns), np.float32)
    for image in range(batch):
        for head in range(heads):
            query, key = as_float32(queries[image, head]), as_float32(keys[image, head]).T  # (nq, d), (d, nk)
            for start in range(0, rows, step):
                block = query[start : start + step] @ key  # (step, nk)
                block -= block.max(axis=1, keepdims=True)
                np.exp(block, out=block)
                block /= block.sum(axis=1, keepdims=True)
                averaged[image, start : start + step] += block
    averaged *= np.float32(1 / heads)
    return averaged


def as_float32(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Convert float16, float32, bfloat16, or the bits of bfloat16 as uint16, to contiguous float32."""
    if values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(values, np.float32)


def _check(queries: NDArray[np.generic], keys: NDArray[np.generic]) -> None:
    names = {str(queries.dtype), str(keys.dtype)}
    if len(names) > 1 or not names <= {"float16", "float32", "bfloat16", "uint16"}:
        raise ValueError(
            f"queries are {queries.dtype} and keys {keys.dtype}; both must be float16, both float32 or both bfloat16"
        )
    if (
        queries.ndim != keys.ndim
        or queries.ndim != 4  # noqa: PLR2004 - batch, heads, places, width
        or queries.shape[:2] != keys.shape[:2]
        or queries.shape[3] != keys.shape[3]
        or 0 in (*queries.shape, *keys.shape)
    ):
        raise ValueError(
            f"queries are {queries.shape} and keys {keys.shape}; expected (batch, layers·heads, places, width); only "
            "the number of places may differ, and no size may be 0"
        )
