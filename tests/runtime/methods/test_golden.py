"""Parity with the masks that google/diffseg's own code returned for seeded attention (tests/golden)."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression

from tests.pictures import pixels

GOLDEN = Path(__file__).parents[2] / "golden"
SEEDS = sorted({int(p.name[4]) for p in GOLDEN.glob("seed*.png")})
TAUS = ("0.3", "0.6", "1.1")


@cache
def maker():
    spec = importlib.util.spec_from_file_location("make_attention", GOLDEN / "make_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=SEEDS)
def case(request):
    return request.param, aggregate_attention(maker().case(request.param))


def agreement(labels, name):
    expected = pixels(GOLDEN / name)
    return float((labels == expected).mean())


@pytest.mark.parametrize("tau", TAUS)
def test_masks_equal_the_reference_label_for_label(case, tau):
    seed, attention = case
    labels = non_max_suppression(merge_attention(attention, [float(tau)] * 3))
    assert agreement(labels, f"seed{seed}_tau{tau}_f64.png") >= 0.9999


def test_refined_masks_equal_the_reference(case):
    seed, attention = case
    labels = non_max_suppression(kmeans_refine(attention, merge_attention(attention, [0.3] * 3)))
    assert agreement(labels, f"seed{seed}_tau0.3_refined.png") >= 0.999


def test_every_golden_mask_is_compared():
    kinds = {f"seed{s}_tau{t}_f64.png" for s in SEEDS for t in TAUS}
    kinds |= {f"seed{s}_tau0.3_refined.png" for s in SEEDS}
    assert {p.name for p in GOLDEN.glob("*.png") if "fp16" not in p.name} == kinds
