"""The forms in which the kernels are compiled: architectures, types, widths of a head, and the tiles of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["row_sums", "average_maps"]
Dtype = Literal["fp16", "bf16", "fp32"]

KERNELS: tuple[Kernel, ...] = ("row_sums", "average_maps")
DTYPES: tuple[Dtype, ...] = ("fp16", "bf16", "fp32")
PARTS = {48: (32, 16), 64: (64, 0), 80: (64, 16), 160: (128, 32)}
"""The powers of two that make up each compiled width. Smaller widths, multiples of 8, are padded to one of these."""

SHARED_MEMORY = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory per block, by compute capability (CUDA C++ Programming Guide)."""

TURING, AMPERE = 75, 80
PTX_VERSION = 87
"""The PTX version of CUDA 12.8, the oldest with all of these architectures: drivers from 12.8 on can read it."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one kernel divides its work.

    Attributes:
        rows: queries per block.
        columns: keys per step of `row_sums`, and per block of `average_maps`.
        warps: of 32 threads, per block.
        stages: tiles that are loaded ahead, 1 for none.
    """

    rows: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled form of one kernel."""

    kernel: Kernel
    arch: int
    dtype: Dtype
    width: int

    @property
    def name(self) -> str:
        """The stem of its files: "average_maps_fp16_48"."""
        return f"{self.kernel}_{self.dtype}_{self.width}"

    @property
    def precision(self) -> str:
        """How products of float32 are computed: as three TF32 products, which keep 21 bits, where tensor cores do that.

        Products of fp16 and bf16 are exact in float32 either way.
        """
        return "tf32x3" if self.dtype == "fp32" and self.arch >= AMPERE else "ieee"

    @property
    def tiles(self) -> Tiles:
        """Tiles that fit the architecture's shared memory, and its registers with as few spills as possible."""
        if self.arch == TURING:  # Triton uses no tensor cores here: products are summed in registers
            small = self.dtype == "fp32" or self.width > 64  # noqa: PLR2004 - the widest that fits 64 rows
            return Tiles(rows=32 if small else 64, columns=32, warps=4, stages=1)
        if self.dtype == "fp32":
            return Tiles(rows=64, columns=32, warps=4, stages=2 if self.width <= 80 else 1)  # noqa: PLR2004
        if self.width <= 64:  # noqa: PLR2004 - Stable Diffusion's 64 × 64 maps have heads of 40 or 64
            return Tiles(rows=128, columns=64, warps=4, stages=3 if self.kernel == "row_sums" else 2)
        return Tiles(rows=64, columns=64, warps=4, stages=2)


def variants(arch: int) -> tuple[Variant, ...]:
    """All variants of one architecture. Turing has no bfloat16."""
    dtypes = [dtype for dtype in DTYPES if dtype != "bf16" or arch >= AMPERE]
    return tuple(Variant(kernel, arch, dtype, width) for width in PARTS for dtype in dtypes for kernel in KERNELS)
