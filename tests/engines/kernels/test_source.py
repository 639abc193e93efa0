"""The kernels' numbers in Triton's interpreter, which needs no GPU, against the NumPy twin."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from diffseg.engines.kernels.twin import averaged_attention

ROOT = Path(__file__).parents[3]
CASES = {  # batch, layers·heads, nq, nk, width, type
    "5x5": (2, 2, 25, 25, 40, "float16"),
    "8x8": (1, 2, 64, 64, 160, "float16"),
    "16x16": (1, 1, 256, 256, 80, "float16"),
    "12x20": (1, 1, 240, 240, 64, "float16"),
    "a slice of 64x64": (1, 1, 130, 640, 40, "float16"),
    "narrow, one query": (1, 1, 1, 25, 8, "float16"),
    "bfloat16, 5x5": (1, 2, 25, 25, 40, "bfloat16"),
    "bfloat16, 8x8": (2, 1, 64, 64, 160, "bfloat16"),
    "float32, 5x5": (1, 2, 25, 25, 80, "float32"),
    "float32, 8x8": (2, 1, 64, 64, 64, "float32"),
    "large logits": (1, 1, 64, 64, 64, "float16"),
}


def draw(case):
    """Queries and keys, bfloat16 as its bits."""
    batch, heads, nq, nk, width, dtype = CASES[case]
    random = np.random.default_rng(len(case))
    scale = 60 if case == "large logits" else 2
    queries = random.standard_normal((batch, heads, nq, width)) * scale / np.sqrt(width)
    keys = random.standard_normal((batch, heads, nk, width)) * scale
    if dtype == "bfloat16":
        return queries.astype(ml_dtypes.bfloat16).view(np.uint16), keys.astype(ml_dtypes.bfloat16).view(np.uint16)
    return queries.astype(dtype), keys.astype(dtype)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Results of the interpreter for each case, computed in one process."""
    for name in ("triton", "torch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}, to interpret the kernels")
    folder = tmp_path_factory.mktemp("cases")
    for index, case in enumerate(CASES):
        queries, keys = draw(case)
        np.savez(folder / f"{index}.npz", queries=queries, keys=keys)
    command = [sys.executable, "-m", "tests.engines.kernels.interpret", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {case: np.load(folder / f"{index}.out.npy") for index, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_compute_what_the_twin_computes(outputs, case):
    expected = averaged_attention(*draw(case))
    # Logits of some thousands are exact to about 1e-4 in float32, whatever the order of their sums.
    relative = 1e-3 if case == "large logits" else 2e-5
    np.testing.assert_allclose(outputs[case], expected, rtol=relative, atol=1e-6)
