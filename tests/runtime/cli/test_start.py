"""What a command imports: nothing that it does not use, because that is most of its start."""

import json
import subprocess
import sys

import numpy as np
import pytest
from diffseg.engines.examples import example_images

CODE = """
import json, sys
from diffseg.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""
UNUSED = (
    "http.client", "urllib.request", "ssl", "xml.sax", "scipy", "sklearn", "jinja2", "fastapi", "tensorrt", "cupy",
    "diffseg.measure.evaluate.run", "diffseg.engines.tensorrt.build", "diffseg.engines.kernels.launch",
    "PIL.DdsImagePlugin", "PIL.TiffImagePlugin", "numpy.ma", "pydantic", "diffseg.cli.evaluate",
)  # fmt: skip


SEGMENT = ("segment", example_images()[0], "-q", "--threads", 1, "--fit", "pad")


@pytest.mark.parametrize(
    ("words", "used", "unused"),
    [
        (SEGMENT, "segment", {"rich.console", "diffseg.cli.bundles"}),
        (("inspect", "tiny"), "bundles", {"diffseg.segmenter", "diffseg.cli.segment"}),
    ],
    ids=["segment", "inspect"],
)
def test_a_command_imports_what_it_uses(words, used, unused, tmp_path):
    arguments = [sys.executable, "-c", CODE, *map(str, words)]
    arguments += ["-o", str(tmp_path)] if words[0] == "segment" else []
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"numpy", f"diffseg.cli.{used}"} <= loaded
    assert sorted(loaded & {*UNUSED, *unused}) == []
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        assert sorted(loaded & {"numpy.f2py", "array_api_compat.numpy"}) == []
