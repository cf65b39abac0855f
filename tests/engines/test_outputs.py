"""Output arrays are used again, but never while somebody has them."""

import numpy as np

from engines.outputs import KEPT_TOKENS, OutputMemory


def memory():
    return OutputMemory(lambda tokens: [np.zeros((tokens, 3)), np.zeros(tokens)])


def test_arrays_that_nobody_has_are_used_again():
    outputs = memory()
    first = outputs.take(1)
    arrays = first.arrays()
    assert outputs.take(1) is not first
    del arrays
    first = outputs.take(1)
    assert outputs.take(1) is first
    assert outputs.take(2) is not first
    assert outputs.take(1) is first


def test_a_view_keeps_its_array():
    outputs = memory()
    first = outputs.take(2)
    view = first.arrays()[0][1:][0, :2].reshape(2, 1)
    assert outputs.take(2) is not first
    view[:] = 7
    assert outputs.take(2).arrays()[0].sum() == 0
    del view


def test_many_tokens_are_not_kept():
    outputs = memory()
    first = outputs.take(KEPT_TOKENS + 1)
    assert outputs.take(KEPT_TOKENS + 1) is not first
