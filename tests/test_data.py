"""The project needs no data that a clone does not contain."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "evaluate_dev"


def test_no_file_names_a_folder_that_only_the_authors_have():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    found = subprocess.run(
        ["git", "grep", "--name-only", "-F", "shared/data", "--", ".", ":!tests"],  # noqa: S607
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
    )
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (None, "usage: scripts/evaluate_dev FOLDER"),
        ([], "FOLDER/cocostuff is missing"),
        (["cocostuff", "bsds500"], "FOLDER/camvid is missing"),
        (["cocostuff", "bsds500", "camvid"], "FOLDER/cocostuff/labels is missing"),
    ],
)
def test_the_development_sets_must_be_named(tmp_path, sets, message):
    for name in sets or ():
        (tmp_path / name / "images").mkdir(parents=True)
    before = (ROOT / "evaluation").exists()
    arguments = [] if sets is None else [tmp_path, "--limit", "1"]
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, check=False, cwd=tmp_path, text=True, timeout=20)
    assert done.returncode == 2
    assert message.replace("FOLDER/", f"{tmp_path}/") in done.stderr
    assert "diffseg evaluate FOLDER" in done.stderr
    assert (ROOT / "evaluation").exists() == before


def test_a_folder_that_is_not_there(tmp_path):
    done = subprocess.run([SCRIPT, tmp_path / "none"], capture_output=True, check=False, text=True, timeout=20)
    assert done.returncode == 2
    assert f"{tmp_path}/none" in done.stderr
