"""The eigenvector that divides a graph: the second smallest of its normalised Laplacian."""

from __future__ import annotations

import numpy as np
from diffseg.arrays import Array, namespace
from numpy.typing import NDArray

DENSE = 64
"""Places up to which all eigenvectors are computed: a few hundred microseconds."""

STEPS = 160
"""Lanczos steps before the solver computes all eigenvectors instead, which takes no longer than more steps would."""

TOLERANCE = 1e-8
"""Largest residual, relative to the largest eigenvalue, of an eigenvector that has converged."""


def second_eigenvector(affinity: Array) -> Array | None:
    """Solve (D - A) v = λ D v for the second smallest λ (Shi and Malik, 2000, equation 6).

    Args:
        affinity: (m, m) symmetric, non-negative, m ≥ 2; D is the diagonal of its row sums.

    Returns:
        (m,) float64, whose entry of the largest magnitude is positive. None if a place has no affinity to any, or the
        solver fails.
    """
    xp = namespace(affinity)
    degrees = xp.sum(affinity, axis=1)
    if not bool(xp.all(degrees > 0)) or not bool(xp.isfinite(xp.sum(degrees))):
        return None
    scale = 1 / xp.sqrt(degrees)
    matrix = affinity * scale[:, None]
    matrix *= scale[None, :]
    vector = None
    if isinstance(matrix, np.ndarray) and len(matrix) > DENSE:
        vector = _lanczos(matrix, 1 / scale)
    if vector is None:
        try:
            # The smallest eigenvalues of the Laplacian 1 - M are the largest of M, which come last.
            vector = xp.linalg.eigh(matrix)[1][:, -2]
        except np.linalg.LinAlgError:
            return None
    vector = vector * scale
    largest = xp.argmax(xp.abs(vector))
    return vector * xp.sign(vector[largest])


def _lanczos(matrix: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Find the second largest eigenvector of `matrix`, (m, m), whose largest one is known.

    Lanczos iteration with full reorthogonalisation in the space orthogonal to `first`. Each step is a product with the
    matrix, where computing all eigenvectors takes some ten times as long.

    Returns:
        (m,) of length 1, or None if it has not converged after `STEPS` steps.
    """
    steps = min(STEPS, len(matrix) - 2)
    basis = np.empty((steps + 2, len(matrix)))
    basis[0] = first / np.linalg.norm(first)
    vector = np.random.default_rng(0).standard_normal(len(matrix))
    vector -= basis[0] * (basis[0] @ vector)
    basis[1] = vector / np.linalg.norm(vector)
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        done = basis[: step + 2]
        product = matrix @ basis[step + 1]
        diagonal[step] = product @ basis[step + 1]
        product -= (done @ product) @ done
        product -= (done @ product) @ done  # once is not enough: rounding leaves a part of the first eigenvector
        beside[step] = np.linalg.norm(product)
        exhausted = beside[step] < 1e-14  # noqa: PLR2004  the space is invariant
        if exhausted or step % 8 == 7 or step == steps - 1:  # noqa: PLR2004
            small = np.diag(diagonal[: step + 1])
            i = np.arange(step)
            small[i, i + 1] = small[i + 1, i] = beside[:step]
            values, vectors = np.linalg.eigh(small)
            if exhausted or beside[step] * abs(vectors[-1, -1]) < TOLERANCE * max(abs(values[-1]), 1e-3):
                found: NDArray[np.float64] = vectors[:, -1] @ basis[1 : step + 2]
                return found / np.linalg.norm(found)
        basis[step + 2 if step + 2 < len(basis) else -1] = product / beside[step]
    return None
