"""Weights from a seed: what each tensor of external data is like, and files filled accordingly.

A tensor gets normally distributed values with the mean and deviation of the real one. Small tensors, and tensors that
are not floating-point, are kept exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT_BYTES = 1 << 12
CHUNK = 1 << 22
"""Number of values that are drawn at a time."""
FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Size in bytes of each floating-point type that is drawn."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The location and the statistics of a tensor.

    Attributes:
        file: file of external data.
        offset: offset of its first byte.
        length: length in bytes.
        dtype: NumPy's name of its type, or `bfloat16`.
        mean: mean of its values.
        deviation: the standard deviation of its values; None: its bytes are kept as they are.
    """

    file: str
    offset: int
    length: int
    dtype: str
    mean: float = 0.0
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fill files of external data: their sizes in bytes, and their tensors in the order of `exact`."""

    files: dict[str, int]
    tensors: tuple[Tensor, ...]

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` returned."""
        values: dict[str, Any] = json.loads(text)
        return cls(values["files"], tuple(Tensor(**tensor) for tensor in values["tensors"]))


def describe(folder: Path, tensors: Iterable[tuple[str, int, int, str]]) -> tuple[Recipe, bytes]:
    """Measure tensors of external data. Return the recipe, and the joined bytes of tensors that are kept exactly.

    Args:
        folder: folder of the files.
        tensors: file, offset, length in bytes and type of each.

    Raises:
        ValueError: a tensor has NaN or infinite values.
    """
    found, exact = [], []
    for file, offset, length, dtype in tensors:
        data = np.memmap(folder / file, np.uint8, "r", offset, (length,))
        if dtype not in FLOATS or length <= EXACT_BYTES:
            exact.append(data.tobytes())
            found.append(Tensor(file, offset, length, dtype))
            continue
        mean, deviation = _moments(data, dtype)
        if not np.isfinite(mean + deviation):
            raise ValueError(f"the tensor at {offset} of {file} has NaN or infinite values")
        found.append(Tensor(file, offset, length, dtype, mean, deviation))
    files = {file: (folder / file).stat().st_size for file in sorted({tensor.file for tensor in found})}
    return Recipe(files, tuple(found)), b"".join(exact)


def fill(folder: Path, recipe: Recipe, exact: bytes, seed: int) -> None:
    """Write the files of a recipe. The same seed gives the same bytes, however many threads draw them."""
    for name, size in recipe.files.items():
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
    places, start = [], 0
    for tensor in recipe.tensors:
        places.append(start)
        start += tensor.length if tensor.deviation is None else 0

    def write(number: int) -> None:
        tensor = recipe.tensors[number]
        data = np.memmap(folder / tensor.file, np.uint8, "r+", tensor.offset, (tensor.length,))
        if tensor.deviation is None:
            data[:] = np.frombuffer(exact, np.uint8, tensor.length, places[number])
            return
        random = np.random.default_rng([seed, number])
        step = CHUNK * FLOATS[tensor.dtype]
        for first in range(0, tensor.length, step):
            part = data[first : first + step]
            values = random.standard_normal(len(part) // FLOATS[tensor.dtype], np.float32)
            values *= np.float32(tensor.deviation)
            values += np.float32(tensor.mean)
            part[:] = _as_bytes(values, tensor.dtype)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write, range(len(recipe.tensors))))


def _as_bytes(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    if dtype == "bfloat16":  # the upper half of a float32; the lower one is cut off
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype(dtype).view(np.uint8)


def _moments(data: NDArray[np.uint8], dtype: str) -> tuple[float, float]:
    """Mean and standard deviation."""
    count, total, squares = len(data) // FLOATS[dtype], 0.0, 0.0
    for first in range(0, len(data), CHUNK):
        part = data[first : first + CHUNK]
        if dtype == "bfloat16":
            values = (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = part.view(dtype)
        values = values.astype(np.float64)
        total, squares = total + float(values.sum()), squares + float((values * values).sum())
    mean = total / count
    return mean, max(0.0, squares / count - mean * mean) ** 0.5
