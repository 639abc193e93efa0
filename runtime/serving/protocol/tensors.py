"""Tensors and parameters of a request for inference: one declaration for `diffseg serve` and Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from diffseg.segmentation import Segmentation
from diffseg.serving.protocol.errors import bad_request

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL, VERSION = "diffseg", "1"
IMAGE, ENCODED = "image", "encoded"
LABELS, SEGMENTS = "labels", "segments"
# BYTES are (B, 1), not (B): Triton needs a dimension besides the batch, and one client must work with both servers.
INPUTS = [
    {"name": IMAGE, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    {"name": ENCODED, "datatype": "BYTES", "shape": [-1, 1]},
]
OUTPUTS = [
    {"name": LABELS, "datatype": "UINT16", "shape": [-1, -1, -1]},
    {"name": SEGMENTS, "datatype": "BYTES", "shape": [-1, 1]},
]
DATATYPES = {tensor["name"]: tensor["datatype"] for tensor in INPUTS}
PARAMETERS = ("threshold", "anchors", "refine", "fit", "method", "tau")
"""Request parameters that both servers read."""


def stack_labels(results: Sequence[Segmentation]) -> NDArray[np.uint16]:
    """Stack the labels of images of one size into (B, H, W).

    Raises:
        RequestError: the images have several sizes.
    """
    sizes = {result.labels.shape for result in results}
    if len(sizes) > 1:
        raise bad_request(f"images of {len(sizes)} sizes have no common {LABELS}; request the output {SEGMENTS} alone")
    return np.stack([result.labels for result in results])
