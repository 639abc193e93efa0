import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("diffusers", reason="needs the extra 'export'")


@pytest.fixture(scope="session")
def make_checkpoint():
    """scripts/make_checkpoint.py, imported."""
    path = Path(__file__).parents[2] / "scripts" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_checkpoint"] = module
    spec.loader.exec_module(module)
    return module.make_checkpoint
