"""Parity with the masks that the official DiffCut returned for seeded features (tests/golden_diffcut)."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import recursive_normalized_cut
from diffseg.methods.pamr import median_filter, pamr_refine
from scipy.optimize import linear_sum_assignment

from tests.pictures import pixels

GOLDEN = Path(__file__).parents[2] / "golden_diffcut"
SEEDS = sorted({int(p.name[4]) for p in GOLDEN.glob("seed*.png")})
TAUS = ("0.3", "0.5", "0.7")
LEAST = 0.999  # of the places; the sign of an eigenvector is ambiguous, so partitions are compared


@cache
def maker():
    spec = importlib.util.spec_from_file_location("make_features", GOLDEN / "make_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[(seed, tau) for seed in SEEDS for tau in TAUS], ids=str)
def case(request):
    seed, tau = request.param
    features = maker().features(seed)
    labels = assign_concepts(features, recursive_normalized_cut(features, float(tau)))
    return f"seed{seed}_tau{tau}", labels, maker().picture(seed)


def agreement(labels, expected):
    """Share of places in the same partition, by the best matching of labels."""
    size = int(max(labels.max(), expected.max())) + 1
    table = np.bincount(expected.astype(int).ravel() * size + labels.ravel(), minlength=size**2).reshape(size, size)
    return table[linear_sum_assignment(table, maximize=True)].sum() / table.sum()


def test_masks_are_the_partition_of_the_reference(case):
    name, labels, _ = case
    assert agreement(labels, pixels(GOLDEN / f"{name}_f64.png")) >= LEAST


def test_refined_masks_are_the_partition_of_the_reference(case):
    name, labels, picture = case
    refined = pamr_refine(labels, picture)
    assert agreement(refined, pixels(GOLDEN / f"{name}_pamr.png")) >= LEAST
    assert agreement(median_filter(refined), pixels(GOLDEN / f"{name}_pamr_median.png")) >= LEAST


def test_every_golden_mask_is_compared():
    kinds = {f"seed{s}_tau{t}_{kind}.png" for s in SEEDS for t in TAUS for kind in ("f64", "pamr", "pamr_median")}
    assert {p.name for p in GOLDEN.glob("*.png")} == kinds
