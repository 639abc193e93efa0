# mypy: ignore-errors
"""The averaged attention as two GPU kernels in the Triton language; only `scripts/release/compile_kernels` needs it.

Two passes, because a row of one head's softmax is needed before the heads can be added up:

1. `row_sums`: the log-sum-exp of each row of QKᵀ, per head, without the maps ever being stored.
2. `average_maps`: QKᵀ again, tile by tile; exp(QKᵀ - log-sum-exp) is added up over all heads in registers, and each
   tile of the averaged map is written once.

Both split the width d of a head into PART_A + PART_B columns, powers of two each, of which those from d on are masked:
a tile's sides must be powers of two, and one part alone would compute 64 columns for a width of 40, 128 for 80 and 256
for 160. Logarithms have base 2, which is what the hardware computes. Logits and sums are float32.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(start, index, length, width, FIRST: tl.constexpr, PART: tl.constexpr):
    """Load columns FIRST to FIRST + PART of some rows of a (length, width) matrix; 0 outside of it."""
    columns = FIRST + tl.arange(0, PART)
    inside = (index[:, None] < length) & (columns[None, :] < width)
    return tl.load(start + index[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def row_sums(
    queries,  # (B · heads, nq, width)
    keys,  # (B · heads, nk, width)
    sums,  # (B · heads, nq) float32, written: log2 of the sum of exp(QKᵀ)
    nq,
    nk,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART_A: tl.constexpr,
    PART_B: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute ROWS rows of one head; the grid is B · heads · row tiles, the tiles of one head beside each other."""
    tiles = tl.cdiv(nq, ROWS)
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    queries += head * nq * width
    keys += head * nk * width
    query_a = load_rows(queries, rows, nq, width, 0, PART_A)
    if PART_B > 0:
        query_b = load_rows(queries, rows, nq, width, PART_A, PART_B)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in tl.range(0, nk, COLUMNS, num_stages=STAGES):
        columns = first + tl.arange(0, COLUMNS)
        key_a = load_rows(keys, columns, nk, width, 0, PART_A)
        logits = tl.dot(query_a, key_a.T, input_precision=PRECISION)
        if PART_B > 0:
            key_b = load_rows(keys, columns, nk, width, PART_A, PART_B)
            logits = tl.dot(query_b, key_b.T, logits, input_precision=PRECISION)
        logits = tl.where(columns[None, :] < nk, logits * LOG2E, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(logits - larger[:, None]), 1)
        largest = larger
    tl.store(sums + head * nq + rows, largest + tl.log2(total), mask=rows < nq)


@triton.jit
def average_maps(
    queries,  # (B, heads, nq, width)
    keys,  # (B, heads, nk, width)
    sums,  # (B, heads, nq) float32, from row_sums
    averaged,  # (B, nq, nk) float32, written
    heads,
    nq,
    nk,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART_A: tl.constexpr,
    PART_B: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute a tile of ROWS × COLUMNS of one image's averaged map; the grid is (column tiles, row tiles, B)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    image = tl.program_id(2).to(tl.int64)
    queries += image * heads * nq * width
    keys += image * heads * nk * width
    sums += image * heads * nq
    added = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in tl.range(0, heads, num_stages=STAGES):
        query_a = load_rows(queries, rows, nq, width, 0, PART_A)
        key_a = load_rows(keys, columns, nk, width, 0, PART_A)
        logits = tl.dot(query_a, key_a.T, input_precision=PRECISION)
        if PART_B > 0:
            query_b = load_rows(queries, rows, nq, width, PART_A, PART_B)
            key_b = load_rows(keys, columns, nk, width, PART_A, PART_B)
            logits = tl.dot(query_b, key_b.T, logits, input_precision=PRECISION)
        row_sum = tl.load(sums + rows, mask=rows < nq, other=0.0)
        added += tl.exp2(logits * LOG2E - row_sum[:, None])
        queries += nq * width
        keys += nk * width
        sums += nq
    inside = (rows[:, None] < nq) & (columns[None, :] < nk)
    places = rows[:, None].to(tl.int64) * nk + columns[None, :]
    tl.store(averaged + image * nq * nk + places, added / heads, mask=inside)
