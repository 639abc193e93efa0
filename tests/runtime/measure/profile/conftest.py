"""One profile, taken by the command, that several tests look at."""

import json
from types import SimpleNamespace

import pytest
from diffseg.engines.examples import example_images
from diffseg.measure.profile.record import parse_profile

from tests.commands import diffseg


@pytest.fixture(scope="session")
def profiled(tmp_path_factory):
    """Two runs of two images, with every option."""
    folder = tmp_path_factory.mktemp("profile")
    done = diffseg(
        *("profile", "tiny", *example_images()[:2], "--runs", 2, "--warmup", 1, "--starts", 1),
        *("--concurrency", 2, "--json", "--trace", "trace.json", "--html", "report.html"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert all("busy" in line for line in done.stderr.splitlines())  # which the machine of a test may be
    (folder / "a.json").write_text(done.stdout)
    return SimpleNamespace(
        folder=folder,
        record=json.loads(done.stdout),
        profile=parse_profile(done.stdout, "a.json"),
        trace=json.loads((folder / "trace.json").read_text()),
        html=(folder / "report.html").read_text(encoding="utf-8"),
    )
