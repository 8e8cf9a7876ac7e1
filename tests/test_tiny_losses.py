"""Nearly perfect predictions on inputs that no dyadic number flatters: relative accuracy next to truth.

The gradient goes as ell^(p-1) times the slope, so what rounding does to a margin counts p times. Promised are
8 eps (1 + max |logit|); the array engine is held to half of that.
"""

import itertools

import numpy as np
import pytest
from samples import each_engine

from lalref import lal_hvp, lal_jvp, lal_loss, lal_value_and_grad, truth

C, S = 3, (3, 5)
LABELS = {
    "blobs": np.array([[[0, 0, 1, 1, 1], [0, 0, 0, 1, 2], [2, 2, 0, 2, 2]]]),
    "stripes": np.arange(15).reshape(1, *S) % 5 // 2,
}
WINDOWS = [
    (3, 1.0, "weights"),
    (5, None, "weights"),
    (7, 2.0, "weights"),
    (3, 2.0, "count"),
    (7, 3.0, "count"),
    (3, None, "count"),
    (1, 1.0, "weights"),
]


def between(low, high, salt):
    """(1, C, *S) numbers in [low, high), multiples of the golden ratio's fraction: none is dyadic."""
    k = np.arange(C * np.prod(S)).reshape(1, C, *S) + 100 * salt
    return low + (high - low) * ((k * 0.6180339887498949) % 1)


CONFIDENCE = {  # how far the target's logit is above 0, and each other one below
    "barely": lambda: between(7.6, 9, 1),
    "alike": lambda: between(15, 18, 2),
    "anything": lambda: between(7.7, 34, 3),
    "one in seven far": lambda: np.where(between(0, 1, 4) < 1 / 7, 34, between(7.7, 9, 5)),
    "beside a constant": lambda: between(7.7, 20, 6) + np.where(np.arange(5) < 2, 13, 0),
}


def predictions(confidence, y, k):
    """Logits of that confidence; with k < 1, what a pooling that divides by the count takes away, put in."""
    return np.where(np.moveaxis(np.eye(C)[y], -1, 1) > 0, 1, -1) * CONFIDENCE[confidence]() / k


def most(engine):
    """So many eps (1 + max |logit|) is an engine held to."""
    return 4 if engine == "array" else 8


def off(found, balls, bound, scale=0.0):
    """The largest error in eps (1 + max |logit|) of the right number, or of `scale` where that is larger.

    What is below the normal range, or has terms there, is left out: eps no longer holds.
    """
    right, _ = truth.doubles(balls)
    size = np.maximum(abs(right[0]), scale)
    normal = size > np.finfo(found.dtype).tiny * 1e5
    error = abs((np.asarray(found, float) - right[0]) - right[1])
    return np.max(np.where(normal, error, 0) / np.where(normal, size, 1)) / bound


CASES = list(itertools.product(CONFIDENCE, LABELS, WINDOWS, ["logits", "probabilities"]))
CASES = [case for case in CASES if case[2][2] == "weights" or case[3] == "logits"]


@each_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("confidence", "labels", "window", "space"), CASES)
def test_value_and_gradient_keep_within_the_promise(engine, confidence, labels, window, space, dtype):
    y = LABELS[labels]
    kernel_size, sigma, normalize = window
    options = {"kernel_size": kernel_size, "sigma": sigma, "normalize": normalize, "space": space}
    x = predictions(confidence, y, 0.85 if normalize == "count" else 1).astype(dtype)
    ell = lal_loss(x.astype(float), y, reduction="none", **options)
    assert 1e-30 < ell.min() <= ell.max() < 1e-6
    bound = float(np.finfo(dtype).eps) * (1 + float(abs(x).max()))
    exact = truth.value_and_grad(x, y, **options)
    value, grad = lal_value_and_grad(x, y, engine=engine, **options)
    assert off(value, exact.value, bound) <= most(engine)
    assert off(grad, exact.grad, bound) <= most(engine)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("confidence", "labels", "window", "space"), CASES)
def test_jvp_and_hvp_keep_within_half_of_the_promise(confidence, labels, window, space, dtype):
    """Which the array engine alone has."""
    y = LABELS[labels]
    kernel_size, sigma, normalize = window
    options = {"kernel_size": kernel_size, "sigma": sigma, "normalize": normalize, "space": space}
    x = predictions(confidence, y, 0.85 if normalize == "count" else 1).astype(dtype)
    v = between(0.5, 1.5, 7).astype(dtype)
    bound = float(np.finfo(dtype).eps) * (1 + float(abs(x).max()))
    exact = truth.hvp(x, y, v, **options)
    slope = abs(truth.doubles(exact.grad)[0][0])
    assert off(lal_jvp(x, y, v, **options)[1], exact.value_dot, bound, (slope * v).sum()) <= most("array")
    assert off(lal_hvp(x, y, v, **options)[1], exact.grad_dot, bound, slope * v.max()) <= most("array")


@each_engine
@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("p", [1, 2.5, np.inf])
def test_other_exponents(engine, space, p):
    y, options = LABELS["blobs"], {"kernel_size": 3, "space": space, "p": p}
    x = predictions("anything", y, 1)
    bound = float(np.finfo(float).eps) * (1 + float(abs(x).max()))
    exact = truth.value_and_grad(x, y, **options)
    value, grad = lal_value_and_grad(x, y, engine=engine, **options)
    assert off(value, exact.value, bound) <= most(engine)
    told = np.array([ball != 0 for ball in exact.grad.ravel()]).reshape(
        grad.shape
    )  # at p = inf few windows share
    assert not grad[~told].any()
    assert off(grad[told], exact.grad[told], bound) <= most(engine)


@each_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_windows_whose_pixels_are_all_alike_lose_nothing(engine, dtype):
    """The mean of equal numbers is that number, however often it was added up and divided."""
    y = np.zeros((1, 5, 5), int)
    x = np.broadcast_to(np.array([8.1, -8.3], dtype)[:, None, None], (1, 2, 5, 5))
    right = np.log1p(np.exp(x[0, 1, 0, 0].astype(np.longdouble) - x[0, 0, 0, 0].astype(np.longdouble)))
    for kernel_size in (3, 5, 7):
        ell = lal_loss(x, y, kernel_size=kernel_size, engine=engine, reduction="none")
        assert (abs(ell - right) <= 4 * np.finfo(dtype).eps * right).all()
