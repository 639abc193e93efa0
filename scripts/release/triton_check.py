"""Compare latency and masks of a real Triton with an in-process call; see scripts/release/triton_check.

    scripts/release/triton_check [--model tiny] [--runs 20] [--out record.json]

The in-process call takes turns with the served one, so that both see the same machine; figures are of image arrays of
one size that are sent one after the other, as binary tensors over HTTP on loopback.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import numpy as np
import tritonclient.http as triton
from bench.record import environment, write_record
from diffseg import Segmenter
from diffseg.engines import example_images, open_bundle
from diffseg.image import read_image
from diffseg.serving.triton.config import RepositoryOptions
from diffseg.serving.triton.platforms import Platform
from diffseg.serving.triton.repository import write_repository
from triton_server import PYTHON, Triton

PACKAGES = "import numpy, onnxruntime; print(numpy.__version__, onnxruntime.__version__)"


def ask(client: Any, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:  # noqa: ANN401 - untyped upstream
    """Return the labels of one image from the server."""
    tensor = triton.InferInput("image", [1, *image.shape], "UINT8")
    tensor.set_data_from_numpy(image[None])
    labels: np.ndarray[Any, Any] = client.infer("diffseg", [tensor]).as_numpy("labels")[0]
    return labels


def measure(model: str, kind: Platform, segmenter: Segmenter, runs: int) -> dict[str, Any]:
    """Serve one platform, and compare it with the in-process call."""
    images = [np.asarray(read_image(path)) for path in example_images()]
    with tempfile.TemporaryDirectory(prefix="diffseg-triton-") as place:
        folder = Path(place)
        provider = "cpu" if kind is Platform.PYTHON else None
        models = write_repository(
            open_bundle(model), folder / "repository", RepositoryOptions(kind, batch=1, provider=provider)
        )
        start = time.perf_counter()
        with Triton(folder / "repository", folder) as server:
            startup = time.perf_counter() - start
            client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=300)
            metadata, equal, served, here = client.get_server_metadata(), [], [], []
            for run in range(-1, runs):  # the first doesn't count
                image = images[run % len(images)]
                start = time.perf_counter()
                expected = segmenter(image).labels
                middle = time.perf_counter()
                found = ask(client, image)
                end = time.perf_counter()
                equal.append(float((found == expected).mean()))
                if run >= 0:
                    here.append(middle - start)
                    served.append(end - middle)
            client.close()
    return {
        "models": list(models),
        "server": f"{metadata['name']} {metadata['version']}",
        "startup_s": round(startup, 1),
        "runs": runs,
        "equal_pixels": min(equal),
        "in_process_s": round(statistics.median(here), 3),
        "served_s": round(statistics.median(served), 3),
        "served_over_in_process": round(statistics.median(b / a for a, b in zip(here, served, strict=True)), 3),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()

    segmenter = Segmenter.load(arguments.model, provider="cpu")
    numpy, onnxruntime = subprocess.run(
        [PYTHON, "-c", PACKAGES], check=True, capture_output=True, text=True
    ).stdout.split()
    record: dict[str, Any] = {
        **environment("tritonclient"),
        "model": arguments.model,
        "in_the_server": {"numpy": numpy, "onnxruntime": onnxruntime},
    }
    for kind in (Platform.PYTHON, Platform.ONNXRUNTIME):
        found = record[kind.value] = measure(arguments.model, kind, segmenter, arguments.runs)
        print(
            f"{kind.value}: {len(found['models'])} model(s) in {found['server']}, up in {found['startup_s']} s; "
            f"{found['equal_pixels']:.0%} of pixels equal; {found['served_s']} s an image, "
            f"{found['served_over_in_process']} times the in-process call"
        )
    record["note"] = (
        "onnxruntime: a Python backend of this check stands for ONNX Runtime's backend, which the wheel lacks"
    )
    print(json.dumps(record, indent=1))
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
