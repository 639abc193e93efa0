"""Checkpoint → bundle, in one call. PyTorch is imported once everything that can be checked without it was."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from diffseg.engines.bundle.bundle import Bundle, new_bundle, write_manifest
from diffseg.engines.errors import MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.export.locate import find_checkpoint
from diffseg.export.settings import ExportSettings

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
"""What the extra `export` brings and `convert` imports."""


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
    """Export a diffusers checkpoint to a bundle of ONNX graphs, and verify it against torch.

    The target and the checkpoint's files are checked before PyTorch is imported, which takes many seconds.

    Args:
        checkpoint: folder or hub id of a diffusers checkpoint.
        target: folder to write; it appears only when everything in it is verified.
        settings: image size, precision, timestep, largest batch, default thresholds.
        name: the bundle's name; None takes the target's.
        vae: another autoencoder for the same latents (TAESD), folder or hub id.
        overwrite: replace a bundle that is there already.
        progress: is told each step, as one line of text.

    Raises:
        MissingPackageError: the extra `export` is not installed.
        CheckpointError: the checkpoint can't be read or is not supported.
        ParityError: a graph disagrees with torch by more than its precision allows.
        BundleError: `target` exists, or can't be written.
    """
    settings = settings or ExportSettings()
    target = Path(target).expanduser().resolve()
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
        manifest = convert(files, folder, settings, name or target.name, progress)
        progress("hash the files")
        write_manifest(folder, manifest)
    return Bundle.open(target)


def _missing(package: str) -> MissingPackageError:
    return MissingPackageError(f"export needs {package}: {install_command('export')}")
