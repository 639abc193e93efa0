"""Repeat the tables of DiffSeg and DiffCut: `python scripts/reproduce --help`, and docs/reproduce.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.pop(0)  # this folder, whose modules would shadow others of the same names
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the modules that scripts share

from reproduce.command import main

if __name__ == "__main__":
    sys.exit(main())
