from dataclasses import replace

import numpy as np
import pytest
from diffseg.annotation.picking import PickableMasks
from diffseg.engines.examples import example_images
from diffseg.image import Placement
from PIL import Image

CHEST, HEAD, BACK, WHEEL, TREES = (140, 110), (140, 70), (150, 125), (165, 210), (20, 20)


@pytest.fixture(scope="module")
def robot(segmenter):
    return PickableMasks.of(segmenter, example_images()[1], segmenter.settings)


@pytest.fixture(scope="module")
def whole(segmenter):
    return segmenter(example_images()[1])


def at(result, point):
    return result.labels == result.labels[point[1], point[0]]


def test_a_positive_point_picks_its_mask(robot, whole):
    assert np.array_equal(robot.pick([CHEST]), at(whole, CHEST))


def test_further_positive_points_join_their_masks(robot, whole):
    assert np.array_equal(robot.pick([CHEST, WHEEL, HEAD]), at(whole, CHEST) | at(whole, WHEEL))


def test_a_negative_point_in_the_same_mask_divides_it(robot, whole):
    mask = robot.pick([HEAD], [BACK])
    assert mask[HEAD[1], HEAD[0]]
    assert not mask[BACK[1], BACK[0]]
    assert not (mask & ~at(whole, HEAD)).any()
    assert 0.1 < mask.sum() / at(whole, HEAD).sum() < 0.5
    # The two points exchanged give the other side. Small parts of the mask that contain no point belong to both.
    other = robot.pick([BACK], [HEAD])
    assert np.array_equal(mask | other, at(whole, HEAD))
    assert (mask & other).sum() < 0.02 * at(whole, HEAD).sum()


def test_a_negative_point_in_another_mask_changes_nothing(robot):
    assert np.array_equal(robot.pick([CHEST], [TREES]), robot.pick([CHEST]))


def test_points_outside_the_image_count_as_its_border(robot):
    assert np.array_equal(robot.pick([(-5, 1e9)]), robot.pick([(0, 287)]))


def test_nothing_is_picked_without_a_positive_point(robot):
    assert not robot.pick([], [CHEST]).any()


def test_what_is_kept_is_small(robot):
    assert robot.nbytes < 2_000_000
    assert np.allclose(robot.shares.sum(2), 1, atol=1e-5)


def test_large_images_get_masks_of_their_size(segmenter):
    with Image.open(example_images()[1]) as image:
        large = PickableMasks.of(segmenter, image.resize((1000, 700)), segmenter.settings)
    mask = large.pick([(500, 260)])
    assert mask.shape == (700, 1000)
    assert mask[260, 500]
    assert large.nbytes < 2_000_000


@pytest.fixture
def drawn():
    """Two parts of one mask at the left and right, over another mask, with shares that divide the left part."""
    labels = np.zeros((16, 16), np.uint16)
    labels[2:14, 2:8] = labels[2:14, 12:15] = 1
    shares = np.zeros((4, 4, 2), np.float32)
    shares[:2, :, 0] = shares[2:, :, 1] = 1
    return PickableMasks(labels, shares, Placement((16, 16), (16, 16), 0, 0, 16, 16))


def test_a_negative_point_drops_a_part_without_a_positive_one(drawn):
    mask = drawn.pick([(4, 4)], [(13, 4)])
    assert np.array_equal(mask, (drawn.labels == 1) & (np.arange(16) < 10))


def test_a_part_is_divided_by_the_distances_of_the_attention(drawn):
    mask = drawn.pick([(3, 3)], [(3, 12)])
    assert mask[2:7, 2:8].all()
    assert not mask[9:14, 2:8].any()
    assert mask[2:14, 12:15].all()  # the other part has no negative point


def test_points_with_the_same_attention_are_divided_by_the_distance_in_the_image(drawn):
    even = replace(drawn, shares=np.full((4, 4, 2), 0.5, np.float32))
    mask = even.pick([(4, 3)], [(4, 12)])
    assert mask[2:7, 2:8].all()
    assert not mask[9:14, 2:8].any()


def test_points_in_one_place_of_the_attention_keep_their_own_pixels(drawn):
    mask = drawn.pick([(4, 4)], [(5, 5)])
    assert mask[4, 4]
    assert not mask[5, 5]


def test_a_box_picks_what_lies_in_it_by_more_than_half(robot, whole):
    trees = at(whole, TREES)
    assert np.array_equal(robot.inside(0, 0, 287, 287), np.ones_like(trees))
    mask = at(whole, CHEST)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    boxed = robot.inside(columns[0], rows[0], columns[-1], rows[-1])
    assert (boxed & mask).sum() == mask.sum()
    assert not (boxed & trees).any()


def test_a_small_box_picks_the_mask_that_fills_most_of_it(robot, whole):
    assert np.array_equal(robot.inside(138, 108, 142, 112), at(whole, CHEST))
    assert np.array_equal(robot.inside(142, 112, 138, 108), at(whole, CHEST))


def test_masks_of_a_result_have_the_pixels_of_the_image(segmenter):
    large = Image.open(example_images()[1]).resize((900, 700))
    result = segmenter(large, keep_attention=True)
    masks = PickableMasks.of_result(result, segmenter.settings)
    assert np.array_equal(masks.pick([(450, 300)]), result.labels == result.labels[300, 450])
    assert masks.nbytes < 3_000_000
