"""What can go wrong, in one tree.

    DiffsegError
    ├── BundleError (ValueError)            a bundle is not what it says
    │   └── BundleNotFoundError (FileNotFoundError)
    ├── CheckpointError (ValueError)        a checkpoint can't be exported
    ├── DatasetError (ValueError)           labelled images are not where their layout has them
    ├── ImageError (ValueError)             one image can't be read; the others go on
    ├── MissingPackageError (ImportError)   an extra is not installed
    ├── ParityError (RuntimeError)          an exported graph disagrees with its source
    ├── PlanError (RuntimeError)            a plan can't be built, is damaged, or was built for something else
    ├── ProfileError (ValueError)           a profile that can't be taken, read or compared
    └── ProviderError (RuntimeError)        the asked provider can't run here
        └── DeviceMemoryError (MemoryError) the GPU's memory is full; fewer images at once may fit

Each message says what is wrong, what was found and how to fix it, on one line.
"""

from __future__ import annotations


class DiffsegError(Exception):
    """Root of the errors that this package raises on purpose."""


class BundleError(DiffsegError, ValueError):
    """A bundle, or its manifest, is damaged, altered or of an unknown schema."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """No bundle of that name, folder or hub id."""


class CheckpointError(DiffsegError, ValueError):
    """A checkpoint that can't be read, or whose architecture is not supported."""


class DatasetError(DiffsegError, ValueError):
    """A folder is no data set of the layout, or results can't be kept."""


class ImageError(DiffsegError, ValueError):
    """An image that can't be decoded, or an array that is no image."""


class MissingPackageError(DiffsegError, ImportError):
    """A package of an extra is needed and not installed."""


class ParityError(DiffsegError, RuntimeError):
    """An exported graph gives other numbers than the model it was traced from."""


class PlanError(DiffsegError, RuntimeError):
    """An engine plan that can't be built, that is damaged or altered, or that was built for something else."""


class ProfileError(DiffsegError, ValueError):
    """A profile that can't be taken, or a record of one that can't be read or compared."""


class ProviderError(DiffsegError, RuntimeError):
    """The execution provider that was asked for can't run on this machine."""


class DeviceMemoryError(ProviderError, MemoryError):
    """The GPU's memory is full. Fewer images at once may fit."""
