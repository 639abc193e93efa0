"""Images of strangers, opened without being decoded; Triton's models open theirs with it, too."""

from __future__ import annotations

import io

from diffseg.engines.errors import ImageError
from diffseg.image import FORMATS, open_lazily
from diffseg.serving.http.errors import too_large
from PIL import Image, UnidentifiedImageError


def open_encoded(data: bytes, pixels: int) -> Image.Image:
    """Open an encoded image without decoding it: only its head is read.

    Raises:
        ImageError: no image of a known format.
        RequestError: more than `pixels` pixels (413).
    """
    try:
        image = open_lazily(io.BytesIO(data), FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"not an image of a format read here: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise too_large(f"{error}; scale the image down") from None
    except Exception as error:  # a damaged head makes a reader raise anything  # noqa: BLE001
        raise ImageError(f"image cannot be opened ({type(error).__name__})") from None
    check_pixels(image.height, image.width, pixels)
    return image


def check_pixels(height: int, width: int, pixels: int) -> None:
    """See that an image is not too large to be decoded.

    Raises:
        RequestError: more than `pixels` pixels (413).
    """
    if height * width > pixels:
        raise too_large(f"an image may have {pixels:,} pixels, found {width} × {height}; scale the image down")
