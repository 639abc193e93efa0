"""The form in which GPU providers execute the UNet, and the averaging behind the form `queries_keys`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS, UNET, Form
from diffseg.engines.bundle.specs import TensorSpec
from diffseg.engines.errors import MissingPackageError, ProviderError
from diffseg.engines.kernels.launch import NAMES, averaged_attention, load_kernels
from diffseg.engines.kernels.record import find_kernels
from diffseg.engines.providers.cuda import device_errors, import_cupy

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle

logger = logging.getLogger(__name__)

VARIABLE = "DIFFSEG_UNET_FORM"
"""Environment variable that selects the form, `attention` or `queries_keys`, to compare the two."""


@dataclass(frozen=True, slots=True)
class Averaging:
    """Turns the outputs of the form `queries_keys` into one averaged attention per resolution.

    Attributes:
        queries: the queries among the UNet's outputs, finest first: (B, layers·heads, n², d).
        keys: the keys, of the same shapes.
        averaged: outputs of the kernels: (B, n², n²) float32, as in the form `attention`.
        sums: their scratch memory: (B, layers·heads, n²) float32.
    """

    queries: tuple[TensorSpec, ...]
    keys: tuple[TensorSpec, ...]
    averaged: tuple[TensorSpec, ...]
    sums: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Averaging:
        """Return the averaging of a bundle.

        Raises:
            BundleError: the bundle lacks the form.
        """
        outputs = bundle.graph(UNET, QUERIES_KEYS).tensors.outputs
        queries, keys = outputs[::2], outputs[1::2]
        averaged = bundle.graph(UNET).tensors.outputs
        sums = tuple(TensorSpec(f"{tensor.name}_sums", "float32", tensor.axes[:3]) for tensor in queries)
        return cls(queries, keys, averaged, sums)

    @property
    def buffers(self) -> tuple[TensorSpec, ...]:
        """Tensors that `run` writes, and that the session must allocate."""
        return (*self.averaged, *self.sums)

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """Type and width of the queries of each resolution."""
        return [(tensor.dtype, tensor.axes[-1].opt) for tensor in self.queries]

    def load(self) -> None:
        """Load the kernels onto the current device, which no stream capture may include.

        Raises:
            MissingPackageError: CuPy is not installed.
            ProviderError: there are no kernels for this GPU, type or width, or the driver refuses them.
        """
        for dtype, width in self.kinds:
            with device_errors(import_cupy(), "the kernels of the averaged attention"):
                load_kernels(dtype, width)

    def run(self, buffers: dict[str, Any]) -> list[Any]:
        """Launch the kernels on the current stream, and return the averaged attention, finest first. Allocates nothing.

        Args:
            buffers: CuPy's arrays of one batch size by name: the UNet's outputs, and those of `buffers`.

        Raises:
            ProviderError: a launch failed.
        """
        return [
            averaged_attention(*(buffers[tensor.name] for tensor in tensors))
            for tensors in zip(self.queries, self.keys, self.averaged, self.sums, strict=True)
        ]


def choose_forms(bundle: Bundle, devices: Sequence[int]) -> tuple[Form, ...]:
    """Return the forms of the UNet that some GPUs can execute, the fastest first, and log which one that is and why.

    `queries_keys` needs a bundle that has it, CuPy, and kernels for each GPU, for the type of the queries and for the
    width of every head. They are loaded here.

    Args:
        bundle: the bundle to execute.
        devices: indices of the GPUs.

    Raises:
        ProviderError: `DIFFSEG_UNET_FORM` names no form, or one that cannot be executed.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *get_args(Form)):
        raise ProviderError(f"{VARIABLE} must be {' or '.join(get_args(Form))}, found {wanted!r}")
    if wanted == ATTENTION:
        logger.info("the UNet's form is %s: %s asks for it", ATTENTION, VARIABLE)
        return (ATTENTION,)
    if reason := _obstacle(bundle, devices):
        if wanted:
            raise ProviderError(f"{VARIABLE} asks for {wanted}, but {reason}")
        logger.info("the UNet's form is %s: %s", ATTENTION, reason)
        return (ATTENTION,)
    if wanted:
        logger.info("the UNet's form is %s: %s asks for it", QUERIES_KEYS, VARIABLE)
        return (QUERIES_KEYS,)
    logger.info("the UNet's form is %s", QUERIES_KEYS)
    return (QUERIES_KEYS, ATTENTION)


def form_to_build(bundle: Bundle, capabilities: Iterable[str]) -> Form:
    """Return the form that GPUs of some compute capabilities execute: `queries_keys` where it and its kernels exist.

    Args:
        bundle: the bundle to build.
        capabilities: compute capabilities, such as "8.9".
    """
    if not bundle.has_form(UNET, QUERIES_KEYS):
        return ATTENTION
    try:
        for capability in capabilities:
            for dtype, width in Averaging.of(bundle).kinds:
                find_kernels(int(capability.replace(".", "")), NAMES[dtype], width)
    except ProviderError as error:
        logger.info("the plan gets the form %s: %s", ATTENTION, error)
        return ATTENTION
    return QUERIES_KEYS


def storage_type(tensor: TensorSpec) -> str:
    """Return NumPy's name of the type of an array that holds a tensor; uint16 holds the bits of bfloat16."""
    return "uint16" if tensor.dtype == "bfloat16" else tensor.dtype


def _obstacle(bundle: Bundle, devices: Sequence[int]) -> str | None:
    """Say why the form `queries_keys` cannot be executed; None if it can."""
    if not bundle.has_form(UNET, QUERIES_KEYS):
        return f"the bundle has no {QUERIES_KEYS}; export it again"
    try:
        cupy, averaging = import_cupy(), Averaging.of(bundle)
        for device in devices:
            with device_errors(cupy, "the kernels of the averaged attention"), cupy.cuda.Device(device):
                averaging.load()
    except (MissingPackageError, ProviderError) as error:
        return str(error)
    return None
