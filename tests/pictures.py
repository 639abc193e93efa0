"""Read images and close their files; unclosed files are errors in these tests."""

import numpy as np
from PIL import Image


def pixels(path, mode=None, size=None):
    with Image.open(path) as image:
        converted = image.convert(mode) if mode else image
        return np.asarray(converted.resize(size) if size else converted)
