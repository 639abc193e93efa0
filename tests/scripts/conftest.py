"""What the tests of the GPU check share."""

import json
import sys
from pathlib import Path

import pytest
from diffseg.engines.bundle.bundle import MODELS

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check.context import Context
from gpu_check.runner import execute

from tests.scripts.commands import run


@pytest.fixture(scope="session")
def seeded(tmp_path_factory):
    """The embedded model's graphs, packed without weights, and its context after the step `weights`."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("seeded")
    context = Context(folder, folder / "graphs.zip", runs=1, rehearse=True)
    done = run("pack", MODELS / "tiny", context.archive)
    assert done.returncode == 0, done.stderr
    execute("weights", context, folder / "outcome.json")
    return context, json.loads((folder / "outcome.json").read_text())
