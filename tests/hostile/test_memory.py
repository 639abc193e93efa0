"""The memory of a real server with its default limits, while it is attacked and afterwards, against the bounds."""

import sys

import pytest
from diffseg.engines.examples import example_images

from tests.hostile.memory import BOUND, CLASSES, RESIDUE
from tests.hostile.serving import served

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
SIDE = 3000  # pixels
QUICK = ("transparent images", "16-bit images", "long strips", "formats", "JSON", "bodies", "arrays")
"""The others need many passes through the network; scripts/release/soak sends all."""
ALLOWED = {0, 200, 201, 400, 413, 503, 504}


@pytest.fixture(scope="module")
def server():
    with served() as server:
        yield server


@pytest.mark.parametrize("name", QUICK)
def test_memory_is_bounded_and_given_back(server, name):
    statuses, peak = server.attack(list(CLASSES[name](SIDE)))
    assert set(statuses) <= ALLOWED, statuses
    assert peak < BOUND
    assert server.settled(RESIDUE) <= RESIDUE
    assert server.ask("/v1/segment", example_images()[0].read_bytes(), {}) == 200
