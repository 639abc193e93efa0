"""Pascal Context: the 59 classes, and its original label maps of 459 classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffseg.engines.errors import ImageError
from diffseg.engines.text import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench", "book",
    "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower", "food", "grass",
    "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road", "rock",
    "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip
"""The order of DiffCut's label maps (`annotations_ctx59`)."""
BACKGROUND = len(CLASSES)

IDS = {  # number of a class in the original label maps of 459 classes
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25, "boat": 31,
    "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68,
    "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115,
    "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "horse": 207,
    "keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259, "mouse": 260, "person": 284, "plate": 295,
    "platform": 296, "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354,
    "sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420,
    "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
ORIGINAL_CLASSES = 459

MAT = np.full(ORIGINAL_CLASSES + 1, BACKGROUND, np.uint8)
for _name, _number in IDS.items():
    MAT[_number] = CLASSES.index(_name)


def read_mat(path: Path) -> NDArray[np.uint8]:
    """Read an original label map, `trainval/*.mat` with the matrix `LabelMap` of the numbers 0 to 459.

    Returns:
        (H, W) classes. What is not among the 59 classes is background.

    Raises:
        ImageError: the file is missing or damaged, or is not such a label map.
    """
    from scipy.io import loadmat

    try:
        with path.open("rb") as stream:
            found = np.asarray(loadmat(stream, variable_names=["LabelMap"])["LabelMap"])
    except FileNotFoundError:
        raise ImageError(f"{path}: the label map does not exist") from None
    except KeyError:
        raise ImageError(f"{path}: no matrix LabelMap, which a label map of Pascal Context has") from None
    except Exception as error:  # a damaged file makes the decoder raise anything  # noqa: BLE001
        reason = first_line(error)
        raise ImageError(f"{path}: cannot be decoded ({reason})") from None
    whole = found.ndim == 2 and found.dtype.kind in "iu" and found.size > 0  # noqa: PLR2004
    if not whole or found.min() < 0 or found.max() > ORIGINAL_CLASSES:
        raise ImageError(
            f"{path}: LabelMap must be a matrix of whole numbers from 0 to {ORIGINAL_CLASSES}, "
            f"found {found.dtype} {found.shape}"
        )
    classes: NDArray[np.uint8] = MAT[found]
    return classes
