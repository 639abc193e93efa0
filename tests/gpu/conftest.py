import pytest
from diffseg.engines.machine import find_gpus


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """The GPU of this machine; without one, everything in this folder is skipped, and says why."""
    found = find_gpus()
    if found.first is None:
        pytest.skip(f"needs an NVIDIA GPU: {found.reason}")
    return found.first
