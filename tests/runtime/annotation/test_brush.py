import numpy as np
import pytest
from diffseg.annotation.brush import encode_brush
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def decode(data):
    """The decoder of thi.ng/rle-pack, which Label Studio's editor uses, translated to Python."""
    bits = np.unpackbits(np.array(data, np.uint8)).tolist()
    position = 0

    def read(count):
        nonlocal position
        value = int("".join(map(str, bits[position : position + count])), 2)
        position += count
        return value

    size, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    out = []
    while len(out) < size:
        repeated = read(1)
        length = read(widths[read(2)]) + 1
        out += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return np.array(out, np.uint8)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 40))))
def test_masks_survive_the_round_trip(mask):
    values = decode(encode_brush(mask))
    assert np.array_equal(values.reshape(*mask.shape, 4), np.repeat(mask[..., None], 4, 2) * np.uint8(255))


@pytest.mark.parametrize("pixels", [16_383, 16_384, 16_385, 32_768, 100_000])
def test_runs_that_exceed_the_format_are_split(pixels):
    mask = np.zeros((1, pixels + 5), bool)
    mask[0, 2:-3] = True
    assert np.array_equal(decode(encode_brush(mask))[::4] == 255, mask[0])


def test_values_are_bytes_in_a_list():
    encoded = encode_brush(np.eye(3, dtype=bool))
    assert all(type(value) is int and 0 <= value < 256 for value in encoded)
    assert encoded[:4] == [0, 0, 0, 36]  # the number of values
