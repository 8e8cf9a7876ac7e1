"""dask arrays: lazily, chunk by chunk, the whole's value and gradient."""

import importlib
import sys

import numpy as np
import pytest
from large_scene import large_scene, needs_linux_and_memory

import lalref
from lalref import LocallyAdaptiveLoss
from lalref.oracle.inputs import VOID, eighths, scattered, weights

da = pytest.importorskip("dask.array")

import dask  # noqa: E402
from dask.callbacks import Callback  # noqa: E402
from dask.highlevelgraph import HighLevelGraph  # noqa: E402

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
        depth = [each and {axis: max(0, d - 1) for axis, d in each.items()} for each in depth]
        return cut(*arrays, depth=depth, **how)

    monkeypatch.setattr(da, "map_overlap", less)
    x, y = da.from_array(X, chunks=(1, 3, 7, 6)), da.from_array(Y, chunks=7)
    assert abs(dask_value_and_grad(loss, x, y)[0].compute() / loss(X, Y) - 1) > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float64_is_worked_out_in_float64_and_all_else_in_float32(dtype):
    x, loss = X.astype(dtype), LocallyAdaptiveLoss()
    lazy, maps = da.from_array(x, chunks=5), da.from_array(Y, chunks=6)
    value, grad = dask_value_and_grad(loss, lazy, maps)
    found, found_grad = dask.compute(value, grad, scheduler="sync")
    wide = "float64" if dtype == "float64" else "float32"
    assert {value.dtype, grad.dtype, found.dtype, found_grad.dtype} == {np.dtype(wide)}
    right, right_grad = loss.value_and_grad(x.astype(wide), Y)
    rtol = 1e-13 if wide == "float64" else 1e-6
    np.testing.assert_allclose(found, right, rtol=rtol)
    np.testing.assert_allclose(found_grad, right_grad, rtol=0, atol=rtol * abs(right_grad).max())


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_a_byte_order_changes_nothing(kind):
    loss, maps = LocallyAdaptiveLoss(), da.from_array(Y, chunks=6)
    found, right = (
        dask.compute(*dask_value_and_grad(loss, da.from_array(X.astype(order + kind), chunks=5), maps))
        for order in "><"
    )
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype == np.dtype(kind)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "bool", "complex64"])
def test_logits_of_another_dtype_are_refused_before_anything_is_read(dtype):
    with pytest.raises(TypeError, match=f"logits must be of dtype float16, .*; got {dtype}"):
        dask_value_and_grad(
            LocallyAdaptiveLoss(), da.from_array(X.astype(dtype), chunks=5), da.from_array(Y, chunks=6)
        )


def test_an_empty_batch_and_one_without_a_valid_window():
    for n in (0, 2):
        x, y = da.from_array(X[:n], chunks=5), da.full((n, 14, 11), VOID, chunks=5)
        value, grad = dask.compute(*dask_value_and_grad(LocallyAdaptiveLoss(), x, y))
        assert value == 0
        assert grad.shape == X[:n].shape
        assert not grad.any()


def test_no_task_is_worked_on_before_it_is_asked_for(monkeypatch):
    """A dask array among the keyword arguments of map_overlap would have its graph cut and fused at once."""
    x, y = da.from_array(X, chunks=(1, 3, 1, 1)), da.from_array(Y, chunks=5)

    def cull(*arguments):
        raise AssertionError("worked on")

    monkeypatch.setattr(HighLevelGraph, "cull", cull)
    value, grad = dask_value_and_grad(LocallyAdaptiveLoss(kernel_size=1), x, y)
    for array in (value, grad):
        with pytest.raises(AssertionError, match="worked on"):
            array.compute()


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
def test_a_gradient_of_a_source_that_is_read_when_needed_keeps_less_than_all_of_it(inline):
    """What dask holds between tasks: of what was read for the first sweep nothing waits for the second."""
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
    assert most < x.nbytes
    right = loss.value_and_grad(x, y)[1]
    np.testing.assert_allclose(out, right, rtol=0, atol=1e-13 * abs(right).max())


WHOLE = da.from_array(X, chunks=(1, 3, 7, 6))
MAPS = da.from_array(Y, chunks=(2, 6, 5))
SOURCES = {
    "sliced": lambda: (WHOLE[::-1], MAPS[[1, 0]]),
    "with a batch axis put before": lambda: (WHOLE[0][None], MAPS[0][None]),
    "stacked": lambda: (da.stack(list(WHOLE)), da.stack(list(MAPS))),
    "put together": lambda: (da.concatenate([WHOLE[..., :5], WHOLE[..., 5:]], axis=-1), MAPS),
    "cut anew": lambda: (WHOLE.rechunk((1, 3, 5, 4)), MAPS.rechunk(4)),
    "padded": lambda: (da.pad(WHOLE, ((0, 0), (0, 0), (0, 2), (1, 0))), da.pad(MAPS, ((0, 0), (0, 2), (1, 0)))),
    "of one delayed call": lambda: (
        da.from_delayed(dask.delayed(lambda: X)(), X.shape, X.dtype),
        da.from_delayed(dask.delayed(lambda: Y)(), Y.shape, Y.dtype),
    ),
    "of one for each image": lambda: (
        da.concatenate([da.from_delayed(dask.delayed(X[i : i + 1]), (1, *X.shape[1:]), X.dtype) for i in (0, 1)]),
        MAPS,
    ),
    "worked out": lambda: (WHOLE - WHOLE.mean(axis=1, keepdims=True), da.where(MAPS == 1, 2, MAPS)),
    "optimized": lambda: dask.optimize(WHOLE + 1, MAPS),
    "persisted": lambda: (WHOLE.persist(), MAPS.persist()),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_arrays_however_dask_came_by_them(source):
    """Value and gradient each alone: together, one would bring along what the other lacks."""
    loss, (x, y) = LocallyAdaptiveLoss(kernel_size=3), source()
    right, right_grad = loss.value_and_grad(*(np.asarray(a) for a in dask.compute(x, y)))
    value, grad = dask_value_and_grad(loss, x, y)
    np.testing.assert_allclose(value.compute(), right, rtol=1e-13)
    np.testing.assert_allclose(grad.compute(), right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


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


class Unread:
    """Logits that nothing may be read of."""

    shape, dtype = X.shape, X.dtype


def test_hdf5_data_sets_that_are_one_or_read_only(tmp_path):
    h5py, loss = pytest.importorskip("h5py"), LocallyAdaptiveLoss()
    with h5py.File(tmp_path / "scene.h5", "w") as file:
        x, other = file.create_dataset("x", data=X), file.create_dataset("grad", X.shape, X.dtype)
        with pytest.raises(ValueError, match="grad overlaps logits"):
            scene_value_and_grad(loss, x, Y, file["x"], tile=8)
        scene_value_and_grad(loss, x, Y, other, tile=8)
        right = loss.value_and_grad(X, Y)[1]
        np.testing.assert_allclose(other[:], right, rtol=0, atol=1e-13 * abs(right).max())
    with (
        h5py.File(tmp_path / "scene.h5") as file,
        pytest.raises(ValueError, match=r'grad is read-only: .* "r\+"'),
    ):
        scene_value_and_grad(loss, Unread(), Y, file["grad"], tile=8)


def test_the_door():
    x, y = da.from_array(X, chunks=5), da.from_array(Y, chunks=5)
    with pytest.raises(TypeError, match=r"labels must be a dask array; got ndarray.*from_array"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, Y)
    with pytest.raises(ValueError, match=r"labels must have the shape of logits without class axis"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, da.concatenate([y, y], axis=1))
    with pytest.raises(ValueError, match=r"labels has chunks of unknown size: call its compute_chunk_sizes"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, y[da.from_array([True, True], chunks=1)])
    with pytest.raises(ValueError, match="no parts to combine"):
        dask_value_and_grad(LocallyAdaptiveLoss(reduction="none"), x, y)
    bad = Y.copy()
    bad[1, 12, 9] = 99
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\).* 99, first at \(1, 12, 9\)") as told:
        dask_value_and_grad(LocallyAdaptiveLoss(), x, da.from_array(bad, chunks=5))[0].compute()
    assert told.value.__notes__ == ["in the tile that reads labels[0:2, 8:14, 7:11]"]
    with pytest.raises(TypeError, match=r"lalref\.LocallyAdaptiveLoss.*; got the function lal_loss"):
        dask_value_and_grad(lalref.lal_loss, x, y)
    with pytest.raises(ValueError, match=r"one-hot: .*argmax\(1\)"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, x.astype(int))


def test_without_dask_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.array", None)
    monkeypatch.delitem(sys.modules, "lalref.adapters.dask")
    with pytest.raises(
        ImportError, match=r"in a clone of lalref, pip install -c constraints\.txt -e '\.\[dask\]'"
    ):
        importlib.import_module("lalref.adapters.dask")


@pytest.mark.slow
@needs_linux_and_memory
def test_a_scene_in_a_quarter_of_its_memory(tmp_path):
    """608 MB of float16 logits, and a gradient of twice that: the whole image's, in every pixel."""
    large_scene(tmp_path, "make")
    with pytest.raises(AssertionError, match="MemoryError"):  # as one chunk it does not fit
        large_scene(tmp_path, "dask", "4000")
    large_scene(tmp_path, "dask", "400")
    assert large_scene(tmp_path, "whole") == "equal\n"
