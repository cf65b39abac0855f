import ml_dtypes
import numpy as np
import pytest

from export.quantise import quantise


@pytest.mark.parametrize(("bits", "limit"), [(8, 1 / 254), (4, 1 / 12)])
def test_no_weight_is_off_by_more_than_half_a_step(bits, limit):
    matrix = np.random.default_rng(0).standard_normal((96, 5000)).astype(np.float32)
    values, scales = quantise(matrix, bits)
    assert values.shape == matrix.shape
    assert values.dtype == (np.int8 if bits == 8 else ml_dtypes.int4)
    assert scales.shape == (3, 5000)
    assert (scales > 0).all()
    back = (values.astype(np.float32).reshape(3, 32, -1) * scales[:, None]).reshape(96, -1)
    largest = np.abs(matrix.reshape(3, 32, -1)).max(1)[:, None]
    # int4 may clip the largest weight of a block, if that makes the others better.
    allowed = largest * (limit if bits == 8 else 0.25) * 1.001
    assert (np.abs(back - matrix).reshape(3, 32, -1) <= allowed).all()
    plain = np.abs(np.rint(matrix.reshape(3, 32, -1) / (largest / 7)) * (largest / 7))
    if bits == 4:
        simple = np.sign(matrix.reshape(3, 32, -1)) * plain
        assert ((back - matrix) ** 2).sum() < ((simple.reshape(96, -1) - matrix) ** 2).sum()


def test_zeros_stay_zero():
    values, scales = quantise(np.zeros((32, 3), np.float32), 4)
    assert not values.astype(np.int8).any()
    assert np.isfinite(scales).all()


def test_inputs_must_fill_blocks():
    with pytest.raises(ValueError, match="33 inputs"):
        quantise(np.zeros((33, 3), np.float32), 8)
