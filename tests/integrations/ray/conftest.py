"""A bundle that takes milliseconds, images, and one small cluster for all tests of this folder."""

import os
import secrets

# Before Ray is imported: its processes inherit them.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
os.environ["DIFFSEG_TOKEN"] = ""
# On busy cores a proxy takes longer than the 5 seconds after which Ray Serve kills it.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "60"

import pytest
from diffseg import Segmenter
from diffseg.engines.errors import ImageError

from tests.engines.toy import make_toy
from tests.integrations.ray.samples import make_images


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore")  # Ray and its packages warn of themselves


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("bundle") / "toy").folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "forty")


@pytest.fixture(scope="session")
def expected(bundle, images):
    """`{path: segmentation}`; None for a broken image."""
    with Segmenter.load(bundle, provider="cpu", threads=1) as segmenter:
        results = segmenter.stream(images)
        return {path: None if isinstance(found, ImageError) else found for path, found in results}


@pytest.fixture(scope="session")
def cluster():
    """Two nodes of one CPU each, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    found.add_node(**node)
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()
