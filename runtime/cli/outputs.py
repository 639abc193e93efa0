"""Checks of result files: none may replace an input, or, without --force, a file that diffseg did not write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffseg.formats.files import output_paths
from diffseg.formats.marks import is_marked
from diffseg.formats.names import Format


class Outputs:
    """The results of a batch.

    Args:
        folder: folder of the results.
        formats: formats of each result.
        inputs: the images of the batch.
        force: replace files that diffseg did not write.
    """

    def __init__(self, folder: Path, formats: Sequence[Format], inputs: Iterable[Path], *, force: bool) -> None:
        self.folder = folder
        self.formats = formats
        self.force = force
        self._inputs = {identity for path in inputs if (identity := _identity(path)) is not None}

    def problem(self, name: str, masks: int | None = None) -> str | None:
        """Say why the result `name` must not be written, or return None.

        Args:
            name: name of its files, without their endings.
            masks: number of masks; None if it is not known yet; cut-outs are then not checked.
        """
        for path in output_paths(self.folder, name, self.formats, masks):
            identity = _identity(path)
            if identity in self._inputs:
                return f"{path} is an image to segment, and this result would replace it; choose another folder with -o"
            taken = identity is not None or os.path.lexists(path)
            if taken and not self.force and not is_marked(path):
                return (
                    f"{path} exists, and was not written by diffseg; choose another folder with -o, or replace it "
                    "with --force"
                )
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, which do not depend on its path; None if there is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
