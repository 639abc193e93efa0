"""Run the kernels in Triton's interpreter, on the CPU: a process of its own, as a variable decides at import.

Reads queries and keys from the folder it is given, as CASE.npz each, and writes CASE.out.npy.
"""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from diffseg.engines.kernels import source
from diffseg.engines.kernels.launch import NAMES
from diffseg.engines.kernels.variants import PARTS, Variant
from triton import cdiv
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

multiply = InterpreterBuilder.create_dot


def multiply_bfloat16(builder, a, b, *rest):
    """Triton 3.9's interpreter multiplies the bits of bfloat16 as integers: widen them to float32 first."""
    if a.dtype.scalar == tl.bfloat16:
        a, b = (
            TensorHandle((each.data.astype(np.uint32) << 16).view(np.float32), tl.float32) for each in (a, b)
        )  # fmt: skip
    return multiply(builder, a, b, *rest)


InterpreterBuilder.create_dot = multiply_bfloat16


def run(queries, keys):
    """Launch both kernels as `launch` does, with the tiles of sm_80."""
    dtype = NAMES[str(queries.dtype)]
    batch, heads, nq, width = queries.shape
    nk = keys.shape[2]
    compiled = min(each for each in PARTS if each >= width)
    first, second = (Variant(kernel, 80, dtype, compiled) for kernel in ("row_sums", "average_maps"))
    queries, keys = (torch.from_numpy(each) for each in (queries, keys))
    if dtype == "bf16":
        queries, keys = queries.view(torch.bfloat16), keys.view(torch.bfloat16)
    sums = torch.full((batch, heads, nq), torch.nan)
    averaged = torch.full((batch, nq, nk), torch.nan)
    tiles = first.tiles
    source.row_sums[(batch * heads * cdiv(nq, tiles.rows),)](
        queries, keys, sums, nq, nk, width,
        tiles.rows, tiles.columns, *PARTS[compiled], first.precision, tiles.stages,
    )  # fmt: skip
    tiles = second.tiles
    source.average_maps[(cdiv(nk, tiles.columns), cdiv(nq, tiles.rows), batch)](
        queries, keys, sums, averaged, heads, nq, nk, width,
        tiles.rows, tiles.columns, *PARTS[compiled], second.precision, tiles.stages,
    )  # fmt: skip
    return averaged.numpy()


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        with np.load(path) as case:
            np.save(path.with_suffix(".out.npy"), run(case["queries"], case["keys"]))
