import numpy as np
import pytest
from diffseg.annotation.scores import mask_scores
from diffseg.engines.examples import example_images


def expected(result):
    """The definition, place by place, for a result of the size of the network's input."""
    attention = result.attention.values
    n = len(attention)
    cell = result.labels.shape[0] // n
    one_hot = result.labels[None] == np.array([s.label for s in result.segments])[:, None, None]
    cover = one_hot.reshape(len(one_hot), n, cell, n, cell).sum((2, 4)).astype(float)
    maps = np.stack([np.einsum("ij,ijkl->kl", c, attention) / c.sum() for c in cover])
    shares = maps / maps.sum(0)
    return (shares * cover).sum((1, 2)) / cover.sum((1, 2))


def test_scores_are_the_shares_of_the_masks_own_maps(segmenter, photo):
    square = np.ascontiguousarray(np.tile(photo, (5, 3, 1))[:512, :512])
    result = segmenter(square, keep_attention=True)
    scores = mask_scores(result)
    assert scores.dtype == np.float32
    assert np.allclose(scores, expected(result), atol=1e-4)
    assert len(result.segments) > 1


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_scores_are_between_chance_and_one(segmenter, fit):
    result = segmenter(example_images()[0], keep_attention=True, fit=fit)
    scores = mask_scores(result)
    assert len(scores) == len(result.segments)
    assert ((scores > 1 / len(scores)) & (scores < 1)).all()


def test_pixels_outside_a_crop_have_no_score(segmenter):
    result = segmenter(example_images()[3], keep_attention=True, fit="crop")
    (void,) = (
        s for s, segment in zip(mask_scores(result), result.segments, strict=True) if segment.label == result.void
    )
    assert void == 0


def test_the_only_mask_has_score_one(segmenter):
    result = segmenter(np.full((60, 80, 3), 90, np.uint8), keep_attention=True)
    assert mask_scores(result).tolist() == [1]


def test_scores_need_the_attention(segmenter, photo):
    with pytest.raises(ValueError, match="keep_attention=True"):
        mask_scores(segmenter(photo))
