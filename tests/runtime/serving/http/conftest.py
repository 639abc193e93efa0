import numpy as np
import pytest

from tests.runtime.doubles import LendingNetwork

pytest.importorskip("cachetools", reason="needs the extra 'serve'")
pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("prometheus_client", reason="needs the extra 'serve'")
pytest.importorskip("structlog", reason="needs the extra 'serve'")
pytest.importorskip("uvicorn", reason="needs the extra 'serve'")

from diffseg import Segmenter
from diffseg.serving.http.limits import Limits
from diffseg.serving.http.service import Service

from tests.runtime.serving.http.running import Running
from tests.runtime.serving.samples import encoded


@pytest.fixture
def serve(fake_bundle):
    """Start servers of the network without weights; each ends with the test."""
    started = []

    def start(network=None, *, batch=4, token=None, keep=1 << 24, ready=True, label_studio=None, **limits):
        segmenter = Segmenter(fake_bundle, network or LendingNetwork(device="cpu"), batch=batch)
        running = Running(
            Service(segmenter, Limits(**limits), token=token, keep=keep, label_studio=label_studio), ready=ready
        )
        started.append(running)
        return running

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def open_page():
    """Open the page of a server in a browser; each browser ends with the test."""
    from tests.runtime.serving.http.browser import Page

    pages = []

    def start(url, **options):
        page = Page(**options)
        pages.append(page)
        page.go(url)
        return page

    yield start
    for page in pages:
        page.close()


@pytest.fixture
def picture(tmp_path, photo):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(np.ascontiguousarray(photo.repeat(3, 0).repeat(3, 1))))
    return path


@pytest.fixture
def features_server(tmp_path):
    """A server of a small bundle for DiffCut."""
    pytest.importorskip("onnx", reason="makes a bundle")
    from tests.engines.toy import make_features_toy

    segmenter = Segmenter.load(make_features_toy(tmp_path / "toy").folder, provider="cpu")
    running = Running(Service(segmenter, Limits(), token=None, keep=1 << 24))
    yield running
    running.stop()


@pytest.fixture
def png(photo):
    return encoded(np.ascontiguousarray(photo))
