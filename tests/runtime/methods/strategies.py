"""Random attention with regions in it."""

import numpy as np
from hypothesis import strategies as st


def attention(seed, n, heads=2, regions=3, sharpness=6.0):
    """(heads, n², n²) float32, rows summing to 1: places of one region attend to each other."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(seed // 7).random((regions, 2))
    y, x = np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2, indexing="ij")
    region = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1).ravel()
    scores = sharpness * (region[:, None] == region[None]) + rng.normal(size=(heads, n * n, n * n))
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


seeds = st.integers(0, 10_000)
