"""Bundles of ONNX graphs, and the providers that execute them. PyTorch is not required."""

from diffseg.engines.bundle.bundle import Bundle, embedded_models, open_bundle
from diffseg.engines.bundle.manifest import Manifest
from diffseg.engines.errors import (
    BundleError,
    BundleNotFoundError,
    CheckpointError,
    DatasetError,
    DiffsegError,
    ImageError,
    MissingPackageError,
    ParityError,
    ProfileError,
    ProviderError,
)
from diffseg.engines.examples import example_images
from diffseg.engines.providers.select import Provider, load_network

__all__ = [
    "Bundle",
    "BundleError",
    "BundleNotFoundError",
    "CheckpointError",
    "DatasetError",
    "DiffsegError",
    "ImageError",
    "Manifest",
    "MissingPackageError",
    "ParityError",
    "ProfileError",
    "Provider",
    "ProviderError",
    "embedded_models",
    "example_images",
    "load_network",
    "open_bundle",
]
