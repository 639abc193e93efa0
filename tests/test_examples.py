"""The notebooks in examples/ run as they are, cell after cell."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    names = {}
    for number, source in enumerate(code):
        exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), names)  # noqa: S102 - our own notebook
    assert len(names["finer"].segments) > len(names["coarser"].segments)
    assert (tmp_path / "masks" / "example.labels.png").is_file()


def test_there_is_a_notebook():
    assert NOTEBOOKS
