"""COCO-Stuff-27: the 27 coarse classes, and the list of validation images that papers report on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.engines.text import first_line
from diffseg.image import FORMATS, open_lazily

CLASSES = (
    "electronic-things", "appliance-things", "food-things", "furniture-things", "indoor-things", "kitchen-things",
    "accessory-things", "animal-things", "outdoor-things", "person-things", "sports-things", "vehicle-things",
    "ceiling-stuff", "floor-stuff", "food-stuff", "furniture-stuff", "rawmaterial-stuff", "textile-stuff",
    "wall-stuff", "window-stuff", "building-stuff", "ground-stuff", "plant-stuff", "sky-stuff", "solid-stuff",
    "structural-stuff", "water-stuff",
)  # fmt: skip
FIRST_STUFF = 12
THINGS = (  # (coarse class, first and last of its fine classes); fine classes are COCO's category ids less 1
    (9, 0, 0), (11, 1, 8), (8, 9, 14), (7, 15, 24), (6, 25, 32), (10, 33, 42),
    (5, 43, 50), (2, 51, 60), (3, 61, 70), (0, 71, 76), (1, 77, 82), (4, 83, 90),
)  # fmt: skip
STUFF = (  # coarse class of the fine classes 91 (banner) to 181 (wood)
    17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22,
    26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21,
    26, 21, 24, 20, 17, 14, 21, 26, 15, 23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18,
    18, 18, 26, 26, 19, 19, 24,
)  # fmt: skip
FINE_TO_COARSE = (*(coarse for coarse, first, last in THINGS for _ in range(first, last + 1)), *STUFF)
"""Coarse class of each of the 182 fine classes, as in IIC, PiCIE, STEGO and google/diffseg."""

LIST = "Coco164kFull_Stuff_Coarse_7.txt"
LEAST_SIDE = 360  # pixels
LEAST_STUFF = 0.75  # share of all pixels


def is_curated(label: Path) -> bool:
    """Whether IIC's rule selects an image: sides of at least 360 pixels, and at least 75 % of all pixels are stuff.

    The list `Coco164kFull_Stuff_Coarse_7` was made with this rule (2,175 images of val2017). With another release of
    the label maps, the rule may give another list.

    Raises:
        ImageError: the label map cannot be read.
    """
    try:
        with open_lazily(label, FORMATS) as image:
            if min(image.size) < LEAST_SIDE:
                return False
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{label}: cannot be decoded ({first_line(error)})") from None
    counts = np.bincount(values.reshape(-1), minlength=256)
    stuff = sum(int(counts[fine]) for fine, coarse in enumerate(FINE_TO_COARSE) if coarse >= FIRST_STUFF)
    return bool(stuff >= LEAST_STUFF * values.size)


def read_list(path: Path) -> list[str]:
    """Read the image names of a list file: one per line, with or without `.jpg`.

    Raises:
        DatasetError: the file cannot be read or is empty.
    """
    try:
        names = [Path(line.strip()).stem for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of image names ({error})") from None
    if not names:
        raise DatasetError(f"{path}: no image names, expected one per line, such as 000000000139")
    return names
