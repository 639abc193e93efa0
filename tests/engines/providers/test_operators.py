"""Operators that ONNX Runtime's own profiler recorded, on the clock of the calls."""

import json
import time

import numpy as np
import pytest
from diffseg.engines import open_bundle
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import ProviderError
from diffseg.engines.providers.onnxruntime import OrtNetwork, read_operators
from diffseg.engines.providers.operators import RecordsOperators

from tests.networks import attend, encode

EVENTS = json.loads("""[
  {"cat": "Session", "name": "model_loading_uri", "ts": 1, "dur": 500, "args": {}},
  {"cat": "Node", "name": "conv_kernel_time", "ts": 1010, "dur": 40, "args": {"op_name": "Conv"}},
  {"cat": "Node", "name": "norm_fence_before", "ts": 1050, "dur": 1, "args": {}},
  {"cat": "Session", "name": "model_run", "ts": 1000, "dur": 100, "args": {}},
  {"cat": "Node", "name": "conv_kernel_time", "ts": 2000, "dur": 60, "args": {"op_name": "Conv"}},
  {"cat": "Session", "name": "model_run", "ts": 2000, "dur": 80, "args": {}}
]""")


def test_a_run_is_laid_in_the_middle_of_its_call():
    first, second = read_operators("unet", EVENTS, [(5_000_000, 5_120_000), (9_000_000, 9_070_000)])
    assert (first.graph, first.name, first.kind) == ("unet", "conv", "Conv")
    assert (first.start, first.duration) == (5_020_000, 40_000)  # 10 µs on either side of the run
    assert (second.start, second.duration) == (9_000_000, 60_000)  # a run that seems longer than its call


def test_an_operator_never_leaves_its_call():
    for operator in read_operators("unet", EVENTS, [(0, 20_000), (30_000, 40_000)]):
        bounds = (0, 20_000) if operator.start < 30_000 else (30_000, 40_000)
        assert bounds[0] <= operator.start <= operator.start + operator.duration <= bounds[1]


def test_a_profile_of_another_shape():
    with pytest.raises(ProviderError, match="profiled 2 runs of unet, expected 1"):
        read_operators("unet", EVENTS, [(0, 1)])


def test_the_network_records_while_it_is_asked_to_and_computes_the_same():
    network = OrtNetwork(open_bundle("tiny"))
    assert isinstance(network, RecordsOperators)
    height, width = open_bundle("tiny").manifest.image_size
    image = np.random.default_rng(0).integers(0, 255, (1, height, width, 3), np.uint8)
    latent = encode(network, image)
    begin = time.perf_counter_ns()
    with network.record_operators() as operators:
        np.testing.assert_array_equal(encode(network, image), latent)
        middle = time.perf_counter_ns()
        outputs = attend(network, latent)
        end = time.perf_counter_ns()
        assert operators == []
    assert all(begin <= o.start and o.start + o.duration <= middle for o in operators if o.graph == ENCODER)
    assert all(middle <= o.start and o.start + o.duration <= end for o in operators if o.graph == UNET)
    assert {o.graph for o in operators} == {ENCODER, UNET}
    count = len(operators)
    for a, b in zip(attend(network, latent), outputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert len(operators) == count
