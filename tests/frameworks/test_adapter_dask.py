"""dask arrays: lazily, chunk by chunk, the whole's value and gradient."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lalref
from lalref import LocallyAdaptiveLoss
from lalref.oracle.inputs import VOID, eighths, scattered, weights

da = pytest.importorskip("dask.array")

import dask  # noqa: E402
from dask.callbacks import Callback  # noqa: E402

from lalref.adapters.dask import dask_value_and_grad  # noqa: E402
from lalref.scenes import scene_value_and_grad  # noqa: E402

X, Y, W = eighths((2, 3, 14, 11), 1), scattered((2, 14, 11), 2, 3, VOID), weights((2, 14, 11), 3)


CHUNKS = [(1, 3, 5, 4), (2, 2, 1, 11), (1, 1, 14, 1), (2, 3, 14, 11), (1, 3, (1, 9, 2, 2), (7, 1, 3))]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("options", [{}, {"stride": 3, "p": 2.5}, {"axis": -1}], ids=str)
def test_chunks_of_any_size_give_the_wholes_answer(chunks, options):
    """Chunks smaller than the halo, uneven, no multiple of the stride, and cut through the classes."""
    loss = LocallyAdaptiveLoss(**options)
    x = X
    if "axis" in options:
        x, chunks = np.moveaxis(X, 1, -1), (chunks[0], *chunks[2:], chunks[1])
    lazy = da.from_array(x, chunks=chunks)
    value, grad = dask_value_and_grad(
        loss, lazy, da.from_array(Y, chunks=6), pixel_weight=da.from_array(W, chunks=5), grad_output=1.5
    )
    assert grad.chunks == lazy.chunks
    found, found_grad = dask.compute(value, grad, scheduler="threads", num_workers=2)
    right, right_grad = loss.value_and_grad(x, Y, pixel_weight=W, grad_output=1.5)
    np.testing.assert_allclose(found, right, rtol=1e-13)
    np.testing.assert_allclose(found_grad, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


def test_by_two_processes():
    loss, x, y = (
        LocallyAdaptiveLoss(kernel_size=3),
        da.from_array(X, chunks=(1, 3, 7, 6)),
        da.from_array(Y, chunks=7),
    )
    found, found_grad = dask.compute(*dask_value_and_grad(loss, x, y), scheduler="processes", num_workers=2)
    right, right_grad = loss.value_and_grad(X, Y)
    np.testing.assert_allclose(found, right, rtol=1e-13)
    np.testing.assert_allclose(found_grad, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


def test_parts_are_combined_as_a_tree(monkeypatch):
    """No task takes the parts of all 308 chunks."""
    most, combine = [], lalref.combine
    monkeypatch.setattr(lalref, "combine", lambda *parts: most.append(len(parts)) or combine(*parts))
    x, y = da.from_array(X, chunks=(1, 3, 1, 1)), da.from_array(Y, chunks=5)
    loss = LocallyAdaptiveLoss(kernel_size=1)
    value, _ = dask_value_and_grad(loss, x, y)
    np.testing.assert_allclose(value.compute(scheduler="sync"), loss(X, Y), rtol=1e-13)
    assert len(most) > 308 / 8
    assert max(most) <= 8


def test_a_halo_that_is_too_small_would_be_noticed(monkeypatch):
    cut, loss = da.map_overlap, LocallyAdaptiveLoss()

    def less(*arrays, depth, **how):
        return cut(*arrays, depth={axis: max(0, d - 1) for axis, d in depth.items()}, **how)

    monkeypatch.setattr(da, "map_overlap", less)
    x, y = da.from_array(X, chunks=(1, 3, 7, 6)), da.from_array(Y, chunks=7)
    assert abs(dask_value_and_grad(loss, x, y)[0].compute() / loss(X, Y) - 1) > 1e-3


def test_an_empty_batch_and_one_without_a_valid_window():
    for n in (0, 2):
        x, y = da.from_array(X[:n], chunks=5), da.full((n, 14, 11), VOID, chunks=5)
        value, grad = dask.compute(*dask_value_and_grad(LocallyAdaptiveLoss(), x, y))
        assert value == 0
        assert grad.shape == X[:n].shape
        assert not grad.any()


def test_nothing_is_read_before_it_is_asked_for():
    def never(block):
        raise AssertionError("read")

    x = da.zeros((1, 2, 8, 8), chunks=4).map_blocks(
        never, dtype="float32", meta=np.empty((0,) * 4, "float32")
    )
    value, grad = dask_value_and_grad(LocallyAdaptiveLoss(), x, da.zeros((1, 8, 8), dtype="uint8"))
    assert (value.dtype, grad.dtype, grad.shape) == (np.float32, np.float32, x.shape)
    with pytest.raises(AssertionError, match="read"):
        value.compute()


class Copies:
    """A source as HDF5 and Zarr are: it has no more than dask asks for, and gives copies."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __getitem__(self, slices):
        return self.array[slices].copy()


@pytest.mark.parametrize("inline", [True, False])
def test_a_gradient_of_a_source_that_is_read_when_needed_keeps_less_than_half_of_it(inline):
    """What dask holds between tasks; without inline_array it would be more than the whole here."""
    x, y = np.tile(X[:1, :, :10, :10], (1, 1, 32, 32)), np.tile(Y[:1, :10, :10], (1, 32, 32))
    source, out, most = Copies(x), np.empty(x.shape), 0

    def look(key, result, dsk, state, worker):
        nonlocal most
        whole = [
            a if a.base is None else a.base for a in state["cache"].values() if isinstance(a, np.ndarray)
        ]
        most = max(most, sum(a.nbytes for a in {id(a): a for a in whole if a is not out}.values()))

    lazy = da.from_array(source, chunks=(1, 3, 40, 40), name=False, inline_array=inline)
    maps = da.from_array(y.astype(np.uint8), chunks=40, name=False)
    loss = LocallyAdaptiveLoss()
    with Callback(posttask=look):
        da.store(dask_value_and_grad(loss, lazy, maps)[1], out, lock=False, scheduler="sync")
    assert (most > x.nbytes) == (not inline)
    assert inline == (most < x.nbytes / 2)
    right = loss.value_and_grad(x, y)[1]
    np.testing.assert_allclose(out, right, rtol=0, atol=1e-13 * abs(right).max())


def test_an_hdf5_data_set(tmp_path):
    h5py, loss = pytest.importorskip("h5py"), LocallyAdaptiveLoss()
    right, right_grad = loss.value_and_grad(X, Y)
    with h5py.File(tmp_path / "scene.h5", "w") as file:
        x, y, out = file.create_dataset("x", data=X), file.create_dataset("y", data=Y), np.empty(X.shape)
        assert abs(scene_value_and_grad(loss, x, y, out, tile=7) / right - 1) < 1e-13
        np.testing.assert_allclose(out, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())
        lazy = (da.from_array(a, chunks=7, inline_array=True) for a in (x, y))
        found, found_grad = dask.compute(*dask_value_and_grad(loss, *lazy), scheduler="threads")
    np.testing.assert_allclose(found, right, rtol=1e-13)
    np.testing.assert_allclose(found_grad, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


def test_the_door():
    x, y = da.from_array(X, chunks=5), da.from_array(Y, chunks=5)
    with pytest.raises(TypeError, match=r"labels must be a dask array; got ndarray.*from_array"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, Y)
    with pytest.raises(ValueError, match=r"labels must have the shape of logits without class axis"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, da.concatenate([y, y], axis=1))
    with pytest.raises(ValueError, match="no parts to combine"):
        dask_value_and_grad(LocallyAdaptiveLoss(reduction="none"), x, y)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, y + np.uint8(9))[0].compute()


LARGE = """
import resource, sys
from pathlib import Path
import dask, dask.array as da, numpy as np
from lalref import LocallyAdaptiveLoss
from lalref.adapters.dask import dask_value_and_grad
from lalref.bench.scenes import scene

def lazily(x, y, side):
    x = da.from_array(x, chunks=(1, 19, side, side), name=False)
    return dask_value_and_grad(loss, x, da.from_array(y, chunks=side, name=False))

loss, side = LocallyAdaptiveLoss(), int(sys.argv[2])
logits, labels, strip, y = scene(4000, Path(sys.argv[1]) / "logits")
right = loss.parts(strip, y).value
right_grad = loss.value_and_grad(strip.astype(np.float32), y)[1][..., :500] / 4  # of four strips' mean
written = np.memmap(Path(sys.argv[1]) / "grad", np.float32, "w+", shape=(1, 19, 1000, 4000))
with dask.config.set(scheduler="threads", num_workers=2):
    dask.compute(*lazily(strip[..., :500], y[..., :500], 250))  # what is compiled and started, and its memory
    value, _ = lazily(logits, labels, side)
    _, grad = lazily(logits[:, :, :1000], labels[:, :1000], side)
    status = (line.split() for line in open("/proc/self/status"))
    used = next(int(words[1]) * 1024 for words in status if words[0] == "VmData:")
    resource.setrlimit(resource.RLIMIT_DATA, (used + logits.nbytes // 4,) * 2)
    np.testing.assert_allclose(value.compute(), right, rtol=2e-6)
    da.store(grad, written, lock=False)
for i in range(4):
    found = written[:, :, 250 * i : 250 * (i + 1), :500]
    np.testing.assert_allclose(found, right_grad, rtol=0, atol=2e-6 * abs(right_grad).max())
print(logits.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is Linux's")
@pytest.mark.parametrize("side", [500, 4000])
def test_a_scene_in_a_quarter_of_its_memory(tmp_path, side):
    """608 MB of float16 logits, whose loss is that of one strip worked out whole; as one chunk they do not fit.

    A gradient of twice the size of its scene too, into a file: of four of the strips.
    """
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LARGE, str(tmp_path), str(side)]
    done = subprocess.run(command, env=env, timeout=300, capture_output=True, text=True, check=False)
    for name in ("logits", "grad"):
        (tmp_path / name).unlink()
    if side == 4000:
        assert done.returncode != 0
        assert "MemoryError" in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout) == 608_000_000
