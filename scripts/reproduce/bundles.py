"""The bundles of the tables: exported from the checkpoint, or given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from diffseg.engines.bundle.bundle import Bundle, open_bundle
from diffseg.engines.bundle.manifest import MANIFEST
from diffseg.engines.errors import BundleError
from diffseg.engines.files import atomic_file
from reproduce.plan import BUNDLES


def check_source(folder: Path, checkpoint: str | None, precision: str) -> None:
    """Note in the folder what its bundles are exported from.

    Raises:
        BundleError: its bundles are from another checkpoint, or of another precision.
    """
    if checkpoint is None:
        return
    path, found = folder / "checkpoint.txt", f"{checkpoint}, {precision}"
    earlier = path.read_text(encoding="utf-8").strip() if path.is_file() else found
    if earlier != found:
        raise BundleError(f"{folder}: its bundles are from {earlier}, not {found}; choose another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(found + "\n", encoding="utf-8")


def find_or_export(key: str, given: dict[str, str], checkpoint: str | None, folder: Path, precision: str) -> Bundle:
    """Return a bundle: the one that was given, the one in the folder, or a new one from the checkpoint.

    Raises:
        BundleError: there is neither a bundle nor a checkpoint, or the export failed, or the bundle is damaged.
    """
    if key in given:
        return open_bundle(given[key])
    target = folder / key
    if not (target / MANIFEST).is_file():
        if checkpoint is None:
            raise BundleError(f"no bundle {key}: name a checkpoint to export, or pass --bundle {key}=FOLDER")
        words = ["export", checkpoint, "-o", str(target), *BUNDLES[key], "--precision", precision]
        print("diffseg", *words, flush=True)
        if subprocess.run([sys.executable, "-m", "diffseg", *words], check=False).returncode:
            raise BundleError(f"{checkpoint} could not be exported to {target}; see above")
    return open_bundle(target)
