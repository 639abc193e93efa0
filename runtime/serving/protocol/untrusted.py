"""Untrusted images: opened and checked without being decoded, and decoded in strips."""

from __future__ import annotations

import io

from diffseg.engines.errors import ImageError
from diffseg.image import FORMATS, open_lazily
from diffseg.serving.protocol.errors import too_large
from diffseg.serving.protocol.headers import check_structure
from PIL import Image, UnidentifiedImageError

MOST_SIDE = 32_768  # pixels


def open_encoded(data: bytes, pixels: int) -> Image.Image:
    """Open an encoded image without decoding it: only its header is read.

    Raises:
        ImageError: the data is not an image of a known format, or its header takes too long to read.
        RequestError: the image has more than `pixels` pixels.
    """
    check_structure(data)
    try:
        image = open_lazily(io.BytesIO(data), FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise too_large(f"an image may have at most {pixels:,} pixels, found far more; scale the image down") from None
    except Exception:  # readers raise any exception for a damaged header  # noqa: BLE001
        raise ImageError("the image cannot be opened: its header is damaged") from None
    check_pixels(image.height, image.width, pixels)
    return image


def check_pixels(height: int, width: int, pixels: int) -> None:
    """Check that an image is not too large to be decoded.

    Raises:
        RequestError: the image has more than `pixels` pixels, or a side is too long.
    """
    if max(height, width) > MOST_SIDE:
        raise too_large(f"an image may have at most {MOST_SIDE:,} pixels per side, found {width} × {height}")
    if height * width > pixels:
        raise too_large(f"an image may have at most {pixels:,} pixels, found {width} × {height}; scale the image down")
