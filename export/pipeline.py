"""Export a checkpoint to a bundle. Everything that does not need PyTorch is checked before PyTorch is imported."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from diffseg.engines.bundle.bundle import Bundle, new_bundle, write_manifest
from diffseg.engines.bundle.manifest import is_plain_name
from diffseg.engines.errors import BundleError, MissingPackageError
from diffseg.engines.files import expand_user
from diffseg.engines.packages import install_command
from diffseg.export.locate import find_checkpoint
from diffseg.export.settings import ExportSettings

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
"""Packages of the extra `export` that `convert` imports."""


def export_bundle(
    checkpoint: str | Path,
    target: str | Path,
    settings: ExportSettings | None = None,
    *,
    name: str | None = None,
    vae: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a diffusers checkpoint to a bundle of ONNX graphs and compare their outputs with PyTorch.

    The target and the checkpoint's files are checked before PyTorch is imported, which takes several seconds.

    Args:
        checkpoint: folder or hub id of a diffusers checkpoint.
        target: folder of the bundle. It is created only after the graphs have been verified.
        settings: image size, precision, timestep, maximum batch size and default merge settings.
        name: the bundle's name; None uses the name of the target folder, with hyphens for characters that are not
            allowed.
        vae: folder or hub id of another autoencoder for the same latents, such as TAESD.
        overwrite: replace an existing bundle.
        progress: called at the beginning of each step, with one line of text.

    Raises:
        MissingPackageError: the extra `export` is not installed.
        CheckpointError: the checkpoint cannot be read or is not supported.
        ParityError: the outputs of a graph differ from PyTorch's by more than its precision allows.
        BundleError: `target` exists or cannot be written, or `name` contains a character other than A-Z a-z 0-9 . _ -
    """
    settings = settings or ExportSettings()
    target = expand_user(target).resolve()
    name = name or default_name(target)
    if not is_plain_name(name):
        raise BundleError(
            f"a bundle's name must be 1 to 64 letters, digits, dots, hyphens and underscores, found {name!r}; "
            "choose another name"
        )
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise _missing(", ".join(missing))
    with new_bundle(target, overwrite=overwrite) as folder:
        progress("load the checkpoint")
        files = find_checkpoint(checkpoint, vae=vae)
        try:
            from diffseg.export.convert import convert
        except ImportError as error:  # installed, but broken
            raise _missing(str(error.name or error)) from error
        manifest = convert(files, folder, settings, name, progress)
        progress("hash the files")
        write_manifest(folder, manifest)
    return Bundle.open(target)


def default_name(target: Path) -> str:
    """Return the default name of a bundle: that of its folder, with hyphens for characters that are not allowed."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", target.name)[:64] or "bundle"


def _missing(package: str) -> MissingPackageError:
    return MissingPackageError(f"export needs {package}: {install_command('export')}")
