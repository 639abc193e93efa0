"""Decode masks with pycocotools."""

import warnings

import pytest


def decode(size, counts):
    """Mask of a run-length string, as booleans (H, W)."""
    mask = pytest.importorskip("pycocotools.mask")
    with warnings.catch_warnings():
        # pycocotools hands its arrays to NumPy in a way that NumPy 2 deprecates.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        return mask.decode({"size": size, "counts": counts}).astype(bool)
