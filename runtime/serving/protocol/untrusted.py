"""Untrusted images: opened and checked without being decoded, and decoded in strips."""

from __future__ import annotations

import io

from diffseg.engines.errors import ImageError
from diffseg.image import FORMATS, open_lazily, read_image
from diffseg.pixels import is_transparent
from diffseg.serving.protocol.errors import too_large
from diffseg.serving.protocol.image_structure import check_structure
from PIL import Image, ImageOps, UnidentifiedImageError

MOST_SIDE = 32_768  # pixels
STRIP = 4_000_000  # pixels that are converted at once
RESULT_BYTES = 12  # per pixel: the RGB image, its labels, and the buffers of the response
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I": 36, "F": 36}
"""Bytes per pixel while an image is decoded; 4 in the modes that are not listed. I and F are scaled in float64."""
DECODER_BYTES = {"WEBP": 4, "AVIF": 8, "JPEG2000": 12}
COEFFICIENTS = 6  # bytes per pixel of a progressive JPEG
ORIENTATION = 0x0112  # EXIF tag


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


def memory_of(image: Image.Image) -> int:
    """Return how many bytes an opened image takes at most, from its decoding to the response."""
    each = RESULT_BYTES + MODE_BYTES.get(image.mode, 4) + DECODER_BYTES.get(image.format or "", 0)
    each += COEFFICIENTS if "progressive" in image.info or "progression" in image.info else 0
    return image.width * image.height * each


def decode_in_strips(image: Image.Image) -> Image.Image:
    """Decode an opened image to RGB, upright, like `read_image`, in less memory if it is transparent or has 16 bits.

    Raises:
        ImageError: the image cannot be decoded.
    """
    strips = is_transparent(image) or image.mode.startswith("I;16")
    if not strips or image.width * image.height <= STRIP:
        return read_image(image)
    try:
        image.load()
    except Exception:  # decoders raise any exception for damaged data  # noqa: BLE001
        raise ImageError("the image cannot be decoded: its data are damaged") from None
    rgb = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip.info = {key: value for key, value in image.info.items() if key == "transparency"}  # without the EXIF data
        rgb.paste(read_image(strip), (0, top))
    rgb.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return ImageOps.exif_transpose(rgb)
