import pytest
from diffseg.engines.bundle.bundle import open_bundle

from scripts.release.triton_server import missing


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Hide the plans in the user's cache from these tests."""
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny():
    return open_bundle("tiny")


@pytest.fixture(scope="session")
def triton_here():
    if reason := missing():
        pytest.skip(reason)
    return pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
