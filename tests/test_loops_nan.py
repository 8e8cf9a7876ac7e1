"""The numba engine's promises about NaN and infinities, in images large enough for every way of pooling.

What may not be read may be anything, and what is wrong in one class stays there: bits tell. What a window makes of
an odd pixel in its group is as the array engine has it.
"""

import numpy as np
import pytest
from samples import INF, NAN, same_bits

from lalref import LocallyAdaptiveLoss
from lalref.bench.inputs import labels, logits
from lalref.oracle.inputs import VOID

pytest.importorskip("numba")

C = 5
WINDOWS = [(2, 3), (2, 5), (2, 9), (2, 15), (2, 19), (2, 31), (3, 3)]  # spatial axes and kernel size
KINDS = [("blobs", C), ("noise", 2), ("noise", C)]  # blocks of one class, of a few, and of many

each_window = pytest.mark.parametrize(("axes", "kernel_size"), WINDOWS)
each_kind = pytest.mark.parametrize(("kind", "classes"), KINDS)
each_space = pytest.mark.parametrize("space", ["logits", "probabilities"])


def image(axes, kind, classes):
    """Logits (1, C, *S) and labels (1, *S) with void ones."""
    x, y = logits((1, C, 40, 90)), labels(kind, (1, 40, 90), classes)
    y[0, ::7, ::11] = VOID
    return (x, y) if axes == 2 else (x.reshape(1, C, 5, 8, 90), y.reshape(1, 5, 8, 90))


def put(x, at, odd):
    """The logits with odd ones in some channels of the pixels where `at` is set."""
    x, at = x.copy(), np.flatnonzero(at)
    flat = x.reshape(C, -1)
    for i, pixel in enumerate(at):
        flat[i % C :, pixel] = odd[i % len(odd)]
    return x


def maps(engine, x, y, kernel_size, space):
    """The map of the losses, and the gradient of its sum."""
    loss = LocallyAdaptiveLoss(
        kernel_size=kernel_size, sigma=4.0, space=space, reduction="none", engine=engine
    )
    with np.errstate(all="ignore"):
        return loss.value_and_grad(x, y)


@each_window
@each_kind
@each_space
def test_ignored_pixels_may_hold_anything(axes, kernel_size, kind, classes, space):
    x, y = image(axes, kind, classes)
    right = maps("numba", x, y, kernel_size, space)
    found = maps("numba", put(x, y == VOID, (NAN, INF, -INF)), y, kernel_size, space)
    assert np.isfinite(right[1]).all()
    assert same_bits(found[0], right[0])
    assert same_bits(found[1], right[1])


@each_window
@each_kind
@each_space
@pytest.mark.parametrize("odd", [(NAN,), (NAN, -INF, INF)], ids=str)
def test_what_is_odd_in_one_class_stays_there(axes, kernel_size, kind, classes, space, odd):
    """Three pixels, far behind the first ones of their class, which its typical margin is taken from."""
    x, y = image(axes, kind, classes)
    at = np.zeros(y.shape, bool)
    k = np.argsort(np.bincount(y[y != VOID]))[-2]  # the largest but for the background
    of_class = np.flatnonzero(y == k)
    at.flat[of_class[[len(of_class) // 2, len(of_class) // 2 + 1, -9]]] = True
    wrong = put(x, at, odd)
    clean, clean_grad = maps("numba", x, y, kernel_size, space)
    found, grad = maps("numba", wrong, y, kernel_size, space)
    right, right_grad = maps("array", wrong, y, kernel_size, space)

    reach = grown(at, kernel_size // 2) & (y == k)
    assert same_bits(found[~reach], clean[~reach])
    assert not same_bits(found[reach], clean[reach])
    sent = np.broadcast_to((grown(reach, kernel_size // 2) & (y == k))[:, None], grad.shape)
    assert same_bits(grad[~sent], clean_grad[~sent])
    np.testing.assert_allclose(found, right, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(grad, right_grad, rtol=0, atol=2e-5 * np.nanmax(abs(clean_grad)))


def grown(at, radius):
    """Every pixel within that chessboard distance of one that is set."""
    for axis in range(1, at.ndim):
        places = np.moveaxis(at, axis, -1)
        padded = np.pad(places, [(0, 0)] * (at.ndim - 1) + [(radius, radius)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=-1)
        at = np.moveaxis(windows.any(-1), -1, axis)
    return at
