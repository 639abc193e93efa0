"""Copies of the embedded models for tests that build plans, which must not be written to the source tree."""

import shutil
from pathlib import Path

from diffseg.engines.bundle import bundle

EMBEDDED = bundle.MODELS


def copy_models(folder: Path) -> Path:
    """Copy the embedded models, without any plans, into a new folder that can be written."""
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("plans"))
    return folder
