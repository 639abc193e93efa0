import io

import pytest
from diffseg import Segmenter
from diffseg.segmenter import open_bundle
from PIL import Image

from tests.runtime.doubles import LendingNetwork


@pytest.fixture
def model(fake_bundle, monkeypatch):
    """A bundle folder that workers load with the network without weights."""
    monkeypatch.setattr("diffseg.segmenter.load_network", lambda *_, **__: LendingNetwork(device="cpu"))
    return str(fake_bundle.folder)


@pytest.fixture
def double(model):
    return Segmenter(open_bundle(model), LendingNetwork(device="cpu"))


@pytest.fixture
def jpeg(photo):
    def encode(shift=0, kind="JPEG"):
        stream = io.BytesIO()
        Image.fromarray((photo.astype(int) + shift).clip(0, 255).astype("uint8")).save(stream, kind)
        return stream.getvalue()

    return encode


@pytest.fixture
def photos(tmp_path, jpeg):
    """A folder of eleven images in a tree, one of which is broken."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(10):
        (folder / ("more" if i % 2 else ".") / f"{i}.jpg").write_bytes(jpeg(5 * i))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.md").write_text("not an image")
    return folder
