"""What the numba engine keeps beside the gradient, and labels in as few bytes as will do."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from samples import same_bits

from lalref import LocallyAdaptiveLoss, lal_value_and_grad
from lalref.bench.inputs import labels, logits
from lalref.engines import loops, loops_threads


def test_memory_beside_the_gradient_is_a_tenth_of_it_for_19_classes(monkeypatch):
    """The door's labels and windows included; with more threads each has its ring of rows besides."""
    x, y = logits((1, 19, 1024, 1024)), labels("blobs", (1, 1024, 1024), 19)
    loss = LocallyAdaptiveLoss(engine="numba")
    loss.value_and_grad(x, y)
    monkeypatch.setattr(loops_threads, "number_of_threads", lambda: 2)
    with ThreadPoolExecutor(1) as helper:  # also where numba is set to one thread, and so has no pool
        monkeypatch.setattr(loops_threads, "_pool", helper)
        tracemalloc.start()
        value, grad = loss.value_and_grad(x, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        loss(x, y)
        peak_of_value = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert value > 0
    assert peak < 1.1 * grad.nbytes
    assert peak_of_value < 0.1 * grad.nbytes


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_labels_of_one_byte_and_of_four_give_the_same_bits(space):
    x, y = logits((2, 127, 37, 83)), labels("blobs", (2, 37, 83), 127).astype(np.int16)
    options = LocallyAdaptiveLoss(space=space)
    y[y == 255] = -1
    y[0, :9] = 126
    g = np.ones(y.shape, np.float32)
    narrow, wide = (
        loops.window_losses_vjp(x, y.astype(dtype), y >= 0, options, g) for dtype in (np.int8, np.int32)
    )
    assert narrow.any()
    assert same_bits(narrow, wide)


def test_labels_beyond_a_byte_are_labels():
    x, y = logits((1, 130, 20, 33)), labels("noise", (1, 20, 33), 130)
    y[0, 0, :3] = 126, 127, 129
    value, grad = lal_value_and_grad(x, y, engine="numba")
    right, right_grad = lal_value_and_grad(x.astype(np.float64), y, engine="array")
    np.testing.assert_allclose(value, right, rtol=1e-5)
    np.testing.assert_allclose(grad, right_grad, rtol=0, atol=1e-5 * abs(right_grad).max())
