"""Read and write messages of the Open Inference Protocol, version 2: JSON and the binary tensor extension."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from diffseg.segmentation import Segmentation
from diffseg.serving.http.errors import busy
from diffseg.serving.protocol.echo import shorten
from diffseg.serving.protocol.errors import bad_request, too_large
from diffseg.serving.protocol.masks import to_json
from diffseg.serving.protocol.tensors import (
    DATATYPES,
    ENCODED,
    IMAGE,
    LABELS,
    MODEL,
    SEGMENTS,
    VERSION,
    stack_labels,
)
from diffseg.serving.protocol.tensors import PARAMETERS as SHARED_PARAMETERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARAMETERS = (*SHARED_PARAMETERS, "timeout", "binary_data_output")
LENGTH = struct.Struct("<I")
LONGEST_ID = 200  # characters
MOST_JSON = 4_000_000
"""Largest JSON, in bytes. Parsed objects take many times as much memory, and parsing blocks other threads."""

MOST_DIMENSIONS = 4

Images: TypeAlias = "list[NDArray[np.uint8]] | list[bytes]"


@dataclass(frozen=True, slots=True)
class Inference:
    """An inference request.

    Attributes:
        id: the id that the client chose, or an empty string.
        images: uint8 arrays (H, W, 3), or encoded images.
        parameters: threshold, anchors, refine, fit, method, tau, timeout (in microseconds), binary_data_output.
        outputs: the names of the requested outputs, each with whether to send it as binary data.
    """

    id: str
    images: Images
    parameters: dict[str, Any]
    outputs: dict[str, bool]


def read_inference(body: bytes, head: int | None, most: int) -> Inference:
    """Read the body of an inference request.

    Args:
        body: JSON, followed by any binary tensors.
        head: length of the JSON in bytes, from `Inference-Header-Content-Length`. None: the whole body is JSON.
        most: largest number of images.

    Raises:
        RequestError: the body does not follow the protocol (400), its JSON is too large (413), or it has more images
            than the queue takes (503).
    """
    if head is not None and not 0 <= head <= len(body):
        raise bad_request(f"Inference-Header-Content-Length is {head}, the body has {len(body)} bytes")
    if (size := len(body) if head is None else head) > MOST_JSON:
        raise too_large(
            f"the JSON of a request may have at most {MOST_JSON:,} bytes, found {size:,}; send tensors as binary data"
        )
    try:
        message = json.loads(body[:head])
    except json.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON: error in line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):  # not UTF-8, too many digits or too deeply nested
        raise bad_request("the body is not JSON that can be read") from None
    if not isinstance(message, dict) or not isinstance(message.get("inputs"), list):
        raise bad_request("the body must be a JSON object with a list of 'inputs'")
    if len(message["inputs"]) != 1 or not isinstance(message["inputs"][0], dict):
        raise bad_request(f"there must be one input, {IMAGE} or {ENCODED}, found {len(message['inputs'])}")
    binary = body[head:] if head is not None else b""
    parameters = _object(message, "parameters")
    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise bad_request(f"unknown parameter {shorten(unknown[0])}; the parameters are {', '.join(PARAMETERS)}")
    name = message.get("id", "")
    if not isinstance(name, str) or len(name) > LONGEST_ID:
        raise bad_request(f"'id' must be a text of at most {LONGEST_ID} characters, found {shorten(name)}")
    return Inference(name, _read_input(message["inputs"][0], binary, most), parameters, _outputs(message, parameters))


def write_inference(inference: Inference, results: Sequence[Segmentation]) -> tuple[bytes, int | None]:
    """Write the response to an inference request.

    Returns:
        The body, and the length of its JSON in bytes if binary tensors follow, else None.

    Raises:
        RequestError: the labels differ in size and cannot form one tensor (400).
    """
    entries, binaries = [], []
    for name, as_binary in inference.outputs.items():
        if name == LABELS:
            tensor = stack_labels(results)
            entry: dict[str, Any] = {"name": name, "datatype": "UINT16", "shape": list(tensor.shape)}
            data: Any = tensor.astype("<u2").tobytes() if as_binary else tensor.ravel().tolist()
        else:
            texts = [json.dumps(to_json(result)) for result in results]
            entry = {"name": name, "datatype": "BYTES", "shape": [len(texts), 1]}
            data = b"".join(LENGTH.pack(len(text)) + text.encode() for text in texts) if as_binary else texts
        if as_binary:
            entry["parameters"] = {"binary_data_size": len(data)}
            binaries.append(data)
        else:
            entry["data"] = data
        entries.append(entry)
    message = {"model_name": MODEL, "model_version": VERSION, "outputs": entries}
    if inference.id:
        message["id"] = inference.id
    head = json.dumps(message).encode()
    return b"".join([head, *binaries]), len(head) if binaries else None


def _object(message: dict[str, Any], name: str) -> dict[str, Any]:
    value = message.get(name, {})
    if not isinstance(value, dict):
        raise bad_request(f"{name!r} must be an object, found {shorten(value)}")
    return value


def _outputs(message: dict[str, Any], parameters: dict[str, Any]) -> dict[str, bool]:
    default = parameters.get("binary_data_output", False) is True
    wanted = message.get("outputs") or [{"name": LABELS}, {"name": SEGMENTS}]
    outputs: dict[str, bool] = {}
    for output in wanted if isinstance(wanted, list) else [None]:
        if not isinstance(output, dict) or output.get("name") not in (LABELS, SEGMENTS):
            raise bad_request(f"'outputs' must be a list of objects whose name is {LABELS} or {SEGMENTS}")
        outputs[output["name"]] = _object(output, "parameters").get("binary_data", default) is True
    return outputs


def _read_input(tensor: dict[str, Any], binary: bytes, most: int) -> Images:
    name, shape = tensor.get("name"), tensor.get("shape")
    if not isinstance(name, str) or name not in DATATYPES or tensor.get("datatype") != DATATYPES[name]:
        known = " or ".join(f"{known} ({datatype})" for known, datatype in DATATYPES.items())
        raise bad_request(f"the input must be {known}, found {shorten(name)} ({shorten(tensor.get('datatype'))})")
    # The number of dimensions comes first: everything that is computed from a shape then takes microseconds.
    if not isinstance(shape, list) or not 1 <= len(shape) <= MOST_DIMENSIONS:
        raise bad_request(f"the shape of {name!r} must be a list of at most {MOST_DIMENSIONS} integers")
    if not all(type(n) is int and n > 0 for n in shape):
        raise bad_request(f"the shape of {name!r} must be a list of positive integers, found {shorten(shape)}")
    if shape[0] > most:
        raise busy(f"the queue takes {most} images, found {shorten(shape[0])} in one request; send fewer at once", 1)
    size = _object(tensor, "parameters").get("binary_data_size")
    if size is not None and size != len(binary):
        raise bad_request(f"input {name!r} says {shorten(size)} binary bytes, found {len(binary)} after the JSON")
    if size is None and "data" not in tensor:
        raise bad_request(f"input {name!r} has neither data nor a binary_data_size; send one of them")
    data = binary if size is not None else tensor["data"]
    return _read_arrays(shape, data) if name == IMAGE else _read_encoded(shape, data)


def _read_arrays(shape: list[int], data: Any) -> list[NDArray[np.uint8]]:  # noqa: ANN401
    if len(shape) != 4 or shape[3] != 3:  # noqa: PLR2004
        raise bad_request(f"{IMAGE} must be (B, H, W, 3), found {shorten(shape)}")
    if isinstance(data, bytes):
        values = np.frombuffer(data, np.uint8)
    else:
        try:
            # Set the dtype: for strings, NumPy would choose one that pads every element to the length of the longest.
            numbers = np.asarray(data, np.float64)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise bad_request(f"the data of {IMAGE} must be numbers, as a flat list or in rows of one length") from None
        if not ((numbers >= 0) & (numbers <= 255) & (numbers == np.floor(numbers))).all():  # noqa: PLR2004
            raise bad_request(f"the data of {IMAGE} must be whole numbers from 0 to 255")
        values = numbers.astype(np.uint8).ravel()
    if values.size != math.prod(shape):
        raise bad_request(f"{IMAGE} of shape {shorten(shape)} cannot hold {values.size} values")
    return list(values.reshape(shape))


def _read_encoded(shape: list[int], data: Any) -> list[bytes]:  # noqa: ANN401
    if len(shape) > 1 and shape[1:] != [1]:
        raise bad_request(f"{ENCODED} must be (B) or (B, 1), found {shorten(shape)}")
    elements: list[bytes] = []
    if isinstance(data, bytes):
        start = 0
        while start < len(data) and len(elements) <= shape[0]:
            if start + LENGTH.size > len(data):
                raise bad_request(f"the bytes of {ENCODED} end within a length")
            end = start + LENGTH.size + LENGTH.unpack_from(data, start)[0]
            if end > len(data):
                raise bad_request(f"the bytes of {ENCODED} end within an element")
            elements.append(data[start + LENGTH.size : end])
            start = end
    else:
        if not isinstance(data, list) or len(data) > shape[0]:
            raise bad_request(
                f"the data of {ENCODED} must be a flat list of {shape[0]} base64 strings, as in its shape"
            )
        try:
            elements = [base64.b64decode(item, validate=True) for item in data]
        except (TypeError, ValueError):
            raise bad_request(f"the data of {ENCODED} must be a flat list of base64 strings") from None
    if shape[0] != len(elements):
        raise bad_request(f"{ENCODED} of shape {shorten(shape)} cannot hold {len(elements)} images")
    return elements
