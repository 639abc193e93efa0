"""A server of a bundle for DiffCut: masks, kept features, and similarities."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from diffseg.methods.cut import normalized
from PIL import Image

from tests.engines.toy import make_both_toy
from tests.runtime.serving.http.running import PATIENCE
from tests.runtime.serving.http.test_segment import labels_of


def test_masks_of_kept_features(features_server, png, photo):
    segmenter = features_server.service.segmenter
    expected = segmenter(photo, tau=0.9, keep_attention=True)
    answer = features_server.ask("POST", "/v1/images?tau=0.9", png)
    assert answer.status == 201
    made = answer.json()
    assert (made["settings"]["method"], made["settings"]["tau"]) == ("diffcut", 0.9)
    np.testing.assert_array_equal(labels_of(made), expected.labels)
    for tau, refine in ((0.9, "none"), (0, "none"), (0.97, "pamr")):
        again = features_server.ask("GET", f"/v1/images/{made['id']}/masks?tau={tau}&refine={refine}")
        assert again.status == 200
        np.testing.assert_array_equal(labels_of(again.json()), expected.resegment(tau=tau, refine=refine).labels)
    small = features_server.ask("GET", f"/v1/images/{made['id']}/masks?tau=0.9&side=100").json()
    assert (small["height"], small["width"]) == (60, 100)
    assert len(small["segments"]) == len(expected.segments)
    held = features_server.service.store.bytes
    assert held >= expected.attention.values.nbytes + 8 * 64**2  # with the graph of the 64 places


def test_the_similarity_of_a_point(features_server, png, photo):
    key = features_server.ask("POST", "/v1/images", png).json()["id"]
    answer = features_server.ask("GET", f"/v1/images/{key}/attention?x=0.5&y=0.9")
    assert answer.status == 200
    with Image.open(io.BytesIO(answer.body)) as image:
        found = np.asarray(image)
    assert found.shape == photo.shape[:2]
    features = features_server.service.segmenter(photo, keep_attention=True).attention
    row, column = 7, 4  # of 8 × 8 places
    normed = normalized(features.values)
    similarities = np.maximum(normed @ normed[8 * row + column], 0).reshape(8, 8)
    np.testing.assert_allclose(features.similarities(row, column), similarities, atol=1e-6)
    assert found[118, 112] == pytest.approx(255 * similarities[row, column] / similarities.max(), abs=3)
    assert found.max() == 255


def test_settings_that_features_do_not_have(features_server, png):
    for query, message in (("method=diffseg", "method must be one of diffcut"), ("refine=kmeans", "needs attention")):
        for path in ("/v1/segment", "/v1/images"):
            answer = features_server.ask("POST", f"{path}?{query}", png)
            assert answer.status == 400
            assert message in answer.error


def test_the_command_chooses_the_network_of_a_bundle_for_both(tmp_path, png):
    folder = make_both_toy(tmp_path / "both").folder
    words = ["-m", "diffseg", "serve", "--model", folder, "--method", "diffcut", "--port", "0", "--provider", "cpu"]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            messages = (json.loads(line)["message"] for line in process.stderr)
            url = next(found[1] for text in messages if (found := re.search(r"running on (http://\S+)", text)))
            with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/segment", png)) as answer:  # noqa: S310
                assert json.load(answer)["settings"]["method"] == "diffcut"
        finally:
            process.kill()
            timer.cancel()
