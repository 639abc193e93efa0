"""Draw docs/cvat.jpg: what clicks pick from the example images, as CVAT's agent answers them.

python scripts/release/clicks_picture.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from diffseg import Segmenter
from diffseg.annotation.picking import PickableMasks, Point
from diffseg.engines import example_images
from PIL import Image, ImageDraw

SIDE, GAP, DOT = 288, 8, 5
GREEN, RED = "#22c55e", "#ef4444"
CLICKS: tuple[tuple[str, list[Point], list[Point]], ...] = (
    ("robot", [(140, 110)], []),
    ("robot", [(140, 110), (165, 210)], []),
    ("sloth", [(40, 250)], []),
    ("sloth", [(40, 250)], [(60, 100)]),
)


def main() -> None:
    """Draw one panel per set of clicks, with what was not picked darkened."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    segmenter = Segmenter.load("tiny")
    paths = {path.stem: path for path in example_images()}
    sheet = Image.new("RGB", (len(CLICKS) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, (name, positive, negative) in enumerate(CLICKS):
        with Image.open(paths[name]) as opened:
            pixels = np.array(opened.convert("RGB"))
        mask = PickableMasks.of(segmenter, pixels, segmenter.settings).pick(positive, negative)
        pixels[~mask] //= 4
        panel = Image.fromarray(pixels)
        pen = ImageDraw.Draw(panel)
        for colour, points in ((GREEN, positive), (RED, negative)):
            for x, y in points:
                pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), colour, "white")
        sheet.paste(panel.resize((SIDE, SIDE)), (number * (SIDE + GAP), 0))
    target = Path(__file__).parents[2] / "docs" / "cvat.jpg"
    sheet.save(target, quality=85)
    print(target)


if __name__ == "__main__":
    main()
