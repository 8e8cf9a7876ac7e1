"""Elements past 2^31, on arrays that are mostly not there: memory that nothing touches costs none.

The kernels' text is the real one. Logits are given strides that carry them past 2^31; for the other arrays
the batch is made so long that its last image lies past 2^31, and only its tiles are run of each launch.
"""

import mmap
from unittest import mock

import numpy as np
import pytest

import lalref
from cuda_host.engine import compiled, on_host
from lalref.engines import kernels
from lalref.engines.kernels_geometry import MOST_LENGTH, Geometry
from lalref.oracle.inputs import blobs, eighths

FAR = 2**31
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux; mmap has the name since Python 3.13


def sparse(shape, dtype=np.float32):
    """An array of zeros that takes memory only where it is written to."""
    dtype = np.dtype(dtype)
    size = max(1, int(np.prod(shape, dtype=np.int64))) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return np.frombuffer(memory, dtype, int(np.prod(shape, dtype=np.int64))).reshape(shape)


def far_apart(axis, fault=""):
    """Value and gradient of an image, near and with more than 2^31 elements between neighbours of an axis."""
    x, y = eighths((2, 3, 4, 5), 1).astype(np.float32), blobs((2, 4, 5), 3)
    steps, step = [0] * 4, 1
    for a in (a for a in (3, 2, 1, 0) if a != axis):
        steps[a], step = step, step * x.shape[a]
    steps[axis] = FAR // (x.shape[axis] - 1) + 9
    far = np.lib.stride_tricks.as_strided(sparse(FAR + 10**4), x.shape, [4 * s for s in steps])
    assert sum((n - 1) * s for n, s in zip(x.shape, steps, strict=True)) > FAR
    far[...] = x
    with on_host(small_tiles=True):
        near = lalref.lal_value_and_grad(x, y)
    with on_host(small_tiles=True, fault=fault):
        return near, lalref.lal_value_and_grad(far, y)


@pytest.mark.parametrize("axis", range(4), ids=["image", "class", "row", "column"])
def test_logits_whose_neighbours_lie_far_apart(axis):
    (value, grad), (far_value, far_grad) = far_apart(axis)
    assert value == far_value
    assert (grad == far_grad).all()


def test_an_index_of_31_bits_reads_other_logits():
    (_, grad), (_, far_grad) = far_apart(2, "a logit's index of 31 bits")
    assert (grad != far_grad).any()


class _Sparse:
    """NumPy, but what it makes is sparse."""

    int32, int64, float64 = np.int32, np.int64, np.float64
    __name__ = "numpy"

    @staticmethod
    def empty(shape, dtype):
        return sparse(shape, dtype)

    @staticmethod
    def asarray(array, order=None, dtype=None):
        assert np.asarray(array).flags.c_contiguous
        return np.asarray(array, dtype)


def far_image(space, kernel_size, fault=""):
    """ell and gradient of one image: alone, and as the last of a batch of more than 2^31 pixels."""
    C, H, W, dtype = 2, 8, 32, np.dtype(np.float32)
    N = FAR // (H * W) + 3
    x, y = eighths((1, C, H, W), 2).astype(dtype), blobs((1, H, W), 2).astype(np.int32)
    g = abs(eighths((1, H, W), 3)).astype(dtype)
    options = lalref.LocallyAdaptiveLoss(space=space, kernel_size=kernel_size, normalize="count")
    with on_host():
        valid = np.ones((1, H, W), bool)
        ell = kernels.window_losses(x, y, valid, options)
        grad = kernels.window_losses_vjp(x, y, valid, options, g)
    labels, upstream, logits = sparse((N, H, W), np.int32), sparse((N, H, W)), sparse((N, C, H, W))
    labels[-1], upstream[-1], logits[-1] = y[0], g[0], x[0]
    geometry = Geometry.of(logits, (H, W), options, dtype)
    work = kernels._Work(_Sparse(), logits, labels, labels, options, dtype, geometry)
    with on_host(last=geometry.tiles[0], fault=fault):
        kept = work.forward(keep=True)
        far_grad = work.backward(kept, upstream)
    assert kept.ell.size > FAR
    return (ell[0], grad[0]), (kept.ell[-1], far_grad[-1])


def far_rows(space, kernel_size, fault=""):
    """ell and gradient of the last rows of one image, of 24 rows and of more than 2^31 pixels."""
    C, W, dtype, rows = 2, 32, np.dtype(np.float32), 24  # whole tiles
    H = (FAR // W // 8 + 3) * 8
    x, y = np.zeros((1, C, rows, W), dtype), np.zeros((1, rows, W), np.int32)
    x[:, :, -8:], y[:, -8:] = eighths((1, C, 8, W), 4), blobs((1, 8, W), 2)
    g = abs(eighths((1, rows, W), 6)).astype(dtype)
    options = lalref.LocallyAdaptiveLoss(space=space, kernel_size=kernel_size)
    with on_host():
        valid = np.ones((1, rows, W), bool)
        ell = kernels.window_losses(x, y, valid, options)
        grad = kernels.window_losses_vjp(x, y, valid, options, g)
    labels, upstream, logits = sparse((1, H, W), np.int32), sparse((1, H, W)), sparse((1, C, H, W))
    labels[:, -rows:], upstream[:, -rows:], logits[:, :, -rows:] = y, g, x
    geometry = Geometry.of(logits, (H, W), options, dtype)
    work = kernels._Work(_Sparse(), logits, labels, labels, options, dtype, geometry)
    with on_host(last=rows // geometry.block[1], fault=fault):
        kept = work.forward(keep=True)
        far_grad = work.backward(kept, upstream)
    own = slice(-8, None)  # what no window at the border of the 24 rows reaches
    return (ell[0, own], grad[0, :, own]), (kept.ell[0, own], far_grad[0, :, own])


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [3, 9])
def test_the_last_rows_of_an_image_of_more_than_two_billion_pixels(space, kernel_size):
    (ell, grad), (far_ell, far_grad) = far_rows(space, kernel_size)
    assert ell.any()
    assert grad.any()
    assert (ell == far_ell).all()
    assert (grad == far_grad).all()


@pytest.mark.parametrize(
    ("fault", "kernel_size"),
    [("a row's index of 31 bits, by cells", 3), ("a row's index of 31 bits, by class", 9)],
)
def test_an_index_of_31_bits_reads_other_rows(fault, kernel_size):
    (ell, _), (far_ell, _) = far_rows("logits", kernel_size, fault)
    assert (ell != far_ell).any()


def last_columns(W, space, from_the_end):
    """ell and gradient of the last tile of a row of W pixels, windows standing at the first and near the last."""
    C, dtype, tile = 2, np.dtype(np.float32), 256
    labels, upstream, logits = sparse((1, W), np.int32), sparse((1, 2)), sparse((1, C, W))
    labels[:, -tile:], logits[:, :, -tile:] = blobs((1, 1, tile), 2)[:, 0], eighths((1, C, tile), 8)
    upstream[...] = 1.5, 2.5
    options = lalref.LocallyAdaptiveLoss(space=space, stride=W - from_the_end)
    geometry = Geometry.of(logits, (2,), options, dtype)
    centres = np.ascontiguousarray(labels[:, :: W - from_the_end])
    work = kernels._Work(_Sparse(), logits, labels, centres, options, dtype, geometry)
    with on_host(last=1):
        kept = work.forward(keep=True)
        return kept.ell[:, -1], work.backward(kept, upstream)[:, :, -tile:]


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("from_the_end", [1, 8, 255])
def test_the_longest_axis_that_is_taken(space, from_the_end):
    (ell, grad), (far_ell, far_grad) = (last_columns(W, space, from_the_end) for W in (512, MOST_LENGTH))
    assert ell.any()
    assert grad.any()
    assert (ell == far_ell).all()
    assert (grad == far_grad).all()


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [3, 9])
def test_the_last_of_a_batch_of_more_than_two_billion_pixels(space, kernel_size):
    (ell, grad), (far_ell, far_grad) = far_image(space, kernel_size)
    assert (ell == far_ell).all()
    assert (grad == far_grad).all()


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_an_index_of_31_bits_writes_to_other_pixels(space):
    (ell, _), (far_ell, _) = far_image(space, 3, "a pixel's index of 31 bits")
    assert (ell != far_ell).any()


# --- Stage 3 ------------------------------------------------------------------------------------------------


def far_windows(dtype, weighed, p=5.0, fault=""):
    """Parts and shares of a few windows: alone, and past 2^31 others of which none is valid.

    A block's windows lie one launch apart, and the few are where the last block alone goes: no other is run.
    """
    options, some = lalref.LocallyAdaptiveLoss(p=p), 200
    valid = np.arange(some) % 7 > 0
    ell = np.where(valid, abs(eighths((some,), 5)), 0).astype(dtype)
    omega = np.where(valid, 1 + abs(eighths((some,), 7)), 0) if weighed else None
    begin = FAR + (kernels.MOST_BLOCKS - 1) * kernels.THREADS  # FAR is a whole number of launches

    def laid_far(values):
        far = sparse((begin + some,), values.dtype)
        far[begin:] = values
        return far

    def both(ell, omega, valid):
        total = kernels.parts_of(ell, omega, valid, options)
        return total, kernels._shares(ell, omega, valid, total, 1.5)

    with on_host():
        near = both(ell, omega, valid)
    far = laid_far(ell), None if omega is None else laid_far(omega), laid_far(valid)
    with on_host(last=1, fault=fault), mock.patch.object(kernels, "namespace", return_value=_Sparse()):
        total, g = both(*far)
    return near, (total, g[begin:])


def agree(near, far):
    numbers = ("maximum", "power_sum", "weight", "count")
    return (near[1] == far[1]).all() and all(getattr(near[0], k) == getattr(far[0], k) for k in numbers)


@pytest.mark.parametrize("weighed", [False, True], ids=["all alike", "weights"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [5.0, np.inf])
def test_stage_3_of_more_than_two_billion_windows(dtype, weighed, p):
    near, far = far_windows(dtype, weighed, p)
    assert near[0].count > 100
    assert near[1].any()
    assert agree(near, far)


@pytest.mark.parametrize("what", ["read", "counted on", "written"])
def test_an_index_of_31_bits_misses_windows(what):
    assert not agree(*far_windows(np.float32, True, fault=f"a window's index of 31 bits, {what}"))


@pytest.mark.parametrize(("fault", "right"), [("", True), ("a number of windows of 31 bits", False)])
def test_more_than_two_billion_windows_are_counted(fault, right):
    """Of each block the largest loss, the weights and the windows, as `tops` leaves them."""
    partial, sums, count = np.ones((3, 1024)), np.zeros(3), np.zeros((), np.int64)
    partial[1:] = 2**22 + 1
    module = compiled("float32", "stage 3", fault=fault)
    args = (partial, np.int32(1024), sums, count)
    module.get_function("fold_tops")((1,), (kernels.THREADS,), args)
    assert sums[2] == 2**32 + 1024
    assert (count == 2**32 + 1024) == right
