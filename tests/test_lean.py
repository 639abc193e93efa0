"""The built wheel in an environment with only the requirements of `diffseg[cpu]`.

No network: the environment's packages are links to those that run this test, picked by the wheel's own metadata.
"""

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

pytest.importorskip("packaging")
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FORBIDDEN = (
    *("torch", "diffusers", "transformers", "onnx", "onnxscript", "cupy", "tensorrt"),
    *("sklearn", "scipy", "skimage", "threadpoolctl"),
    *("fastapi", "uvicorn", "prometheus_client", "python_multipart", "tritonclient"),
    *("jinja2", "cachetools", "structlog"),
)


def closure(requirements):
    """Names of the distributions that `requirements` bring along."""
    names, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in names:
            continue
        names.add(name)
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                waiting.append(needed)
    return names


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """Python of a virtual environment with the wheel, its declared packages, and no pip."""
    folder = tmp_path_factory.mktemp("lean")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    subprocess.run([str(a) for a in build], check=True, capture_output=True)
    wheel = next(folder.glob("diffseg-*.whl"))
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
    metadata = (next(site.glob("diffseg-*.dist-info")) / "METADATA").read_text()
    declared = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    wanted = [r for r in map(Requirement, declared) if r.marker is None or r.marker.evaluate({"extra": "cpu"})]
    for name in closure([f"{r.name}[{','.join(r.extras)}]" if r.extras else r.name for r in wanted]):
        for top in {
            file.parts[0] for file in distribution(name).files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            source = Path(str(distribution(name).locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return python


def run(python, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [python, "-W", "error", *arguments], capture_output=True, text=True, check=False, cwd="/", env=environment
    )


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_environment_is_lean(lean, name):
    assert f"No module named '{name}'" in run(lean, "-c", f"import {name}").stderr


def test_the_runtime_imports_and_segments(lean):
    code = f"""
import sys, json
from diffseg.engines import example_images
from diffseg import Segmenter
results = Segmenter.load("tiny", provider="cpu")([*example_images()])
print(json.dumps([len(r.segments) for r in results]), *sorted(m for m in sys.modules if m in {FORBIDDEN}))
"""
    done = run(lean, "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(count >= 2 for count in json.loads(done.stdout))  # nor does any forbidden module follow the counts


def test_the_command_line_segments(lean, tmp_path):
    command = lean.parent / "diffseg"
    command.write_text(f"#!{lean}\nfrom diffseg.cli.app import main\nmain()\n")
    command.chmod(0o755)
    image = next((ROOT / "engines" / "examples").glob("*.jpg"))
    done = subprocess.run(
        [command, "segment", image, "-o", tmp_path], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.overlay.png"))) == 1


def test_export_says_what_to_install(lean, tmp_path):
    done = run(lean, "-m", "diffseg", "export", str(tmp_path), "-o", str(tmp_path / "bundle"))
    assert done.returncode == 1
    assert "pip install 'diffseg[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_says_what_to_install(lean, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images" / "photo.jpg").touch()
    out = tmp_path / "out"
    done = run(lean, "-m", "diffseg", "evaluate", str(tmp_path), "--methods", "colour", "-o", str(out))
    assert done.returncode == 1
    assert (
        done.stderr == "error: evaluate needs scipy, sklearn, skimage, jinja2, filelock: pip install 'diffseg[eval]'\n"
    )
    assert not out.exists()


def test_an_html_report_says_what_to_install(lean, tmp_path):
    done = run(lean, "-m", "diffseg", "profile", "tiny", "--html", str(tmp_path / "report.html"))
    assert done.returncode == 1
    assert done.stderr == "error: an HTML report needs jinja2: pip install 'diffseg[reports]'\n"
    assert not list(tmp_path.iterdir())


def test_the_templates_are_in_the_wheel(lean):
    code = """
from importlib.resources import files
print(*(file.name for file in files("diffseg.measure.reports").iterdir()))
"""
    names = run(lean, "-c", code).stdout.split()
    templates = {path.name for path in (ROOT / "runtime" / "measure" / "reports").glob("*.html")}
    assert {"base.html", "evaluation.html", "profile.html"} <= templates <= set(names)


def test_the_page_is_in_the_wheel(lean):
    code = "from diffseg.serving.http.document import page_document; print(page_document())"
    done = run(lean, "-c", code)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("</html>")
    assert "{{" not in done.stdout


def test_serve_says_what_to_install(lean):
    done = run(lean, "-m", "diffseg", "serve")
    assert done.returncode == 1
    assert done.stderr == "error: serve needs fastapi: pip install 'diffseg[serve]'\n"


def test_a_model_repository_is_written(lean, tmp_path):
    done = run(lean, "-m", "diffseg", "triton", "tiny", "-o", str(tmp_path / "repository"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "diffseg" / "1" / "model.py").is_file()  # it is in the wheel


def test_importing_the_runtime_pulls_in_no_command_line(lean):
    done = run(
        lean,
        "-c",
        "import sys, diffseg; print(*[m for m in ('typer', 'rich', 'onnxruntime') if m in sys.modules])",
    )
    assert done.stdout.strip() == ""
    assert done.returncode == 0, done.stderr
