"""Arrays and decoded images of any kind as 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, get_args

import numpy as np
from diffseg.engines.errors import ImageError
from diffseg.engines.text import first_line
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from numpy.typing import NDArray

ChannelOrder = Literal["rgb", "bgr"]
CHANNEL_ORDERS: tuple[ChannelOrder, ...] = get_args(ChannelOrder)
ACCEPTED = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or float (0 to 1)"
BYTE = 255
TRANSPARENT_MODES = ("LA", "PA", "La", "RGBA", "RGBa")


class ArrayLike(Protocol):
    """Anything that NumPy can convert to an array, such as a PyTorch tensor or a JAX array."""

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]: ...  # noqa: ANN401


class DlpackLike(Protocol):
    """An array of any library that supports DLPack."""

    def __dlpack__(self, **kwargs: Any) -> Any: ...  # noqa: ANN401


class Readable(Protocol):
    """An open binary file, or an object that is read like one."""

    def read(self, size: int = -1, /) -> bytes: ...  # noqa: D102


def is_array(value: object) -> TypeGuard[NDArray[Any] | ArrayLike | DlpackLike]:
    """Whether a value is an array of any library."""
    return isinstance(value, np.ndarray) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def array_to_rgb(source: NDArray[Any] | ArrayLike | DlpackLike, order: ChannelOrder = "rgb") -> Image.Image:
    """Return an array as an RGB image. Transparent pixels are composited over white.

    Args:
        source: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, uint16, or float from 0 to 1; on any device.
        order: order of the three colour channels. The fourth is always opacity.

    Raises:
        ImageError: the array has another shape or dtype, no pixels, or floats that are not from 0 to 1.
        ValueError: an unknown order.
    """
    if order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order must be {' or '.join(CHANNEL_ORDERS)}, found {order!r}")
    array = _on_host(source)
    flat = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)  # noqa: PLR2004
    if 0 in array.shape or not (flat or (array.ndim == 3 and array.shape[2] in (3, 4))):  # noqa: PLR2004
        raise ImageError(f"an array must be {ACCEPTED}, found {array.dtype} {array.shape}{_hint(array.shape)}")
    values = _to_8_bit(array)
    if flat:
        values = values.reshape(values.shape[:2])
    elif order == "bgr":
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return image_to_rgb(Image.fromarray(np.ascontiguousarray(values)))


def image_to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image of any mode as RGB, upright, over white. Greys of more than 8 bits are scaled.

    Raises:
        ImageError: the image has no pixels.
    """
    if 0 in image.size:
        raise ImageError(f"an image must have pixels, found {image.size[0]} × {image.size[1]}")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if upright.mode.startswith(("I", "F")):
        return _grey_to_8_bit(upright).convert("RGB")
    if is_transparent(upright):
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has pixels that are not opaque, or may have them."""
    return image.mode in TRANSPARENT_MODES or "transparency" in image.info


def _on_host(source: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return an array of any library and device as a NumPy array."""
    if isinstance(source, np.ndarray):
        return np.asarray(source)  # a subclass, such as a masked array, as a plain array
    try:
        if hasattr(source, "__cuda_array_interface__") and hasattr(source, "get"):  # CuPy
            return np.asarray(source.get())
        if hasattr(source, "detach") and hasattr(source, "cpu"):  # PyTorch: may need gradients or be on a GPU
            return np.asarray(source.detach().cpu())
        return np.asarray(source) if hasattr(source, "__array__") else np.from_dlpack(source)
    except Exception as error:  # each library has its own  # noqa: BLE001
        reason = first_line(error)
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        raise ImageError(f"a {kind} could not be converted to a NumPy array ({reason}); convert it yourself") from None


def _to_8_bit(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # noqa: PLR2004 - of either byte order
        return np.asarray(array >> 8, dtype=np.uint8)  # 257·v becomes v
    if array.dtype.kind == "f":
        least, largest = float(array.min()), float(array.max())  # NaN if there is any
        if not (least >= 0 and largest <= 1):
            hint = "; divide by 255" if 1 < largest <= BYTE and least >= 0 else ""
            raise ImageError(f"an array of floats must be from 0 to 1, found {least:g} to {largest:g}{hint}")
        return np.asarray(np.rint(array * array.dtype.type(BYTE)), dtype=np.uint8)
    raise ImageError(f"an array must be {ACCEPTED}, found {array.dtype} {array.shape}; convert its values")


def _hint(shape: tuple[int, ...]) -> str:
    """Return a hint on an array of the wrong shape, as `; …`, or an empty string."""
    if 0 in shape:
        return ", which has no pixels"
    if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) > 4:  # noqa: PLR2004
        return "; move the channels to the last axis"
    if len(shape) == 4:  # noqa: PLR2004
        return "; pass the images of a batch as a list"
    return ""


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a 16-bit, 32-bit or float greyscale image to 8 bits. Pillow's own conversion would clip it to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    largest = values.max()
    if image.mode.startswith("I;16") or (image.mode == "I" and BYTE < largest <= 65535):  # noqa: PLR2004
        values /= 257
    elif image.mode == "F" and largest <= 1:
        values *= BYTE
    elif largest > BYTE:
        values *= BYTE / largest
    return Image.fromarray(np.clip(values, 0, BYTE).astype(np.uint8))
