"""The exceptions that diffseg raises on purpose. All are derived from `DiffsegError`.

    DiffsegError
    ├── BundleError (ValueError)            a bundle is damaged, altered or of an unknown schema
    │   └── BundleNotFoundError (FileNotFoundError)
    ├── CheckpointError (ValueError)        a checkpoint can't be exported
    ├── ClusterError (RuntimeError)         a batch can't run on these machines, or its files can't be reached
    ├── DatasetError (ValueError)           a folder does not have the layout of its data set
    ├── ImageError (ValueError)             an image can't be read; other images are not affected
    ├── MissingPackageError (ImportError)   an extra is not installed
    ├── ParityError (RuntimeError)          an exported graph differs from its checkpoint
    ├── PlanError (RuntimeError)            a plan can't be built, is damaged or does not fit this machine
    ├── ProfileError (ValueError)           a profile can't be taken, read or compared
    └── ProviderError (RuntimeError)        the requested provider can't run on this machine
        └── DeviceMemoryError (MemoryError) the GPU's memory is full; a smaller batch may fit

Each message says what is wrong, what was found and how to fix it, on one line.
"""

from __future__ import annotations


class DiffsegError(Exception):
    """Base class of all exceptions that diffseg raises on purpose."""


class BundleError(DiffsegError, ValueError):
    """A bundle, or its manifest, is damaged, altered or of an unknown schema."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """No bundle has this name, folder or hub id."""


class CheckpointError(DiffsegError, ValueError):
    """A checkpoint that can't be read, or whose architecture is not supported."""


class ClusterError(DiffsegError, RuntimeError):
    """A batch that can't run on these machines, or whose inputs or outputs can't be reached."""


class DatasetError(DiffsegError, ValueError):
    """A folder does not have the layout of its data set, or results can't be written."""


class ImageError(DiffsegError, ValueError):
    """An image that can't be decoded, or an array whose shape or type is not an image's."""


class MissingPackageError(DiffsegError, ImportError):
    """An optional package is required but not installed."""


class ParityError(DiffsegError, RuntimeError):
    """The outputs of an exported graph differ from those of the model that it was traced from."""


class PlanError(DiffsegError, RuntimeError):
    """An engine plan that can't be built, is damaged or altered, or does not fit this machine or bundle."""


class ProfileError(DiffsegError, ValueError):
    """A profile that can't be taken, or whose record can't be read or compared."""


class ProviderError(DiffsegError, RuntimeError):
    """The requested execution provider can't run on this machine."""


class DeviceMemoryError(ProviderError, MemoryError):
    """The GPU's memory is full. A smaller batch may fit."""
