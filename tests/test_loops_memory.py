"""What the numba engine keeps beside the gradient, and labels in as few bytes as will do."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from samples import same_bits

from lalref import LocallyAdaptiveLoss, inputs, lal_value_and_grad
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


def peak_of(call):
    call()
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kernel_size", [5, 31])
def test_no_copy_of_the_logits_is_made(dtype, kernel_size, monkeypatch):
    """Of 16-bit ones, worked out in float32, a band at a time; of a window's rows, those that it reaches."""
    monkeypatch.setattr(loops_threads, "number_of_threads", lambda: 1)
    x, y = logits((1, 19, 1024, 1024)).astype(dtype), labels("blobs", (1, 1024, 1024), 19)
    loss = LocallyAdaptiveLoss(engine="numba", kernel_size=kernel_size)
    (_, grad), peak = peak_of(lambda: loss.value_and_grad(x, y))
    band = 19 * 1024 * 4 * 3 * (4 * 15 + 4 * 15)  # float32 rows of a band and those around, three times
    assert peak < 1.25 * grad.nbytes + (band if dtype == "float16" else 0)


@pytest.mark.parametrize("p", [1, 2.5, np.inf])
def test_stage_3_keeps_no_map_beside_the_losses(p, monkeypatch):
    monkeypatch.setattr(loops_threads, "number_of_threads", lambda: 1)
    x, y = logits((1, 19, 1024, 1024)), labels("blobs", (1, 1024, 1024), 19)
    loss = LocallyAdaptiveLoss(engine="numba", p=p)
    (_, grad), peak = peak_of(lambda: loss.value_and_grad(x, y))
    assert peak < 1.12 * grad.nbytes


@pytest.mark.parametrize("what", ["numbers", "classes", "ignored", "wrong"])
def test_unchecked_labels_take_a_byte_too(what):
    y = np.zeros((1, 512, 512), np.int64)
    y[0, :9] = {"numbers": 0, "classes": 3, "ignored": 255, "wrong": -7}[what]
    x = np.zeros((1, 4, 512, 512), np.float32)
    loss = LocallyAdaptiveLoss(engine="numba", kernel_size=1, p=1, check=False)
    problem, peak = peak_of(lambda: inputs.prepare(x, y, None, loss))
    assert problem.labels[0, 0, 0] == {"numbers": 0, "classes": 3, "ignored": -1, "wrong": 4}[what]
    assert problem.labels[0, 9:].max() == 0
    assert problem.labels.dtype == np.int8
    assert peak < 6 * y.size  # labels and windows a byte each; what is worked out by the cacheful
    value, grad = loss.value_and_grad(x, y)
    assert np.isnan(value) == (what == "wrong")
    assert np.isnan(grad[0, :, 0]).all() == (what == "wrong")


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
