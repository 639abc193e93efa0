"""Draw the image in the README, docs/masks.jpg, from the embedded model and the example images.

python scripts/release/masks_picture.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffseg import Segmenter
from diffseg.engines import example_images
from PIL import Image

HEIGHT, GAP = 288, 8


def main() -> None:
    """Draw the images above and their masks below."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    results = Segmenter.load("tiny")([*example_images()])
    columns = [(r.image, r.overlay()) for r in results]
    widths = [round(image.width * HEIGHT / image.height) for image, _ in columns]
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), 2 * HEIGHT + GAP), "white")
    left = 0
    for column, width in zip(columns, widths, strict=True):
        for row, picture in enumerate(column):
            sheet.paste(picture.resize((width, HEIGHT)), (left, row * (HEIGHT + GAP)))
        left += width + GAP
    target = Path(__file__).parents[2] / "docs" / "masks.jpg"
    target.parent.mkdir(exist_ok=True)
    sheet.save(target, quality=88)
    print(target)


if __name__ == "__main__":
    main()
