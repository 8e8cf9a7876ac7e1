"""Scenes tile by tile: the whole image's value and gradient, in bounded memory, and told errors."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from large_scene import large_scene, needs_linux_and_memory
from samples import problems

from lalref import LocallyAdaptiveLoss, lal_loss, scenes
from lalref.bench import scenes as bench
from lalref.oracle.inputs import VOID, eighths, scattered, weights
from lalref.scenes import scene_parts, scene_value_and_grad

X, Y = eighths((2, 3, 21, 18), 1), scattered((2, 21, 18), 2, 3, VOID)
W = weights((2, 21, 18), 3)
OPTIONS = {
    "default": {},
    "stride 3": {"stride": 3},
    "probabilities": {"space": "probabilities"},
    "p inf, sum": {"p": math.inf, "reduction": "sum"},
    "tuples": {"kernel_size": (7, 3), "stride": (2, 1)},
    "channels last": {"axis": -1},
    "window larger than the image": {"kernel_size": 99},
}


@pytest.mark.parametrize("tile", [4, 7, 100])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_tiles_of_any_size_give_the_whole_images_answer(options, tile):
    loss = LocallyAdaptiveLoss(**options)
    x = np.moveaxis(X, 1, -1) if "axis" in options else X
    grad = np.full(x.shape, np.nan)
    value = scene_value_and_grad(loss, x, Y, grad, pixel_weight=W, tile=tile)
    right, right_grad = loss.value_and_grad(x, Y, pixel_weight=W)
    np.testing.assert_allclose(value, right, rtol=1e-13)
    np.testing.assert_allclose(grad, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


@settings(max_examples=40)
@given(problems(axes=(1, 3), reductions=("mean", "sum")), st.integers(1, 4))
def test_whatever_the_options(problem, tile):
    x, y, options = problem
    w = options.pop("pixel_weight")
    loss = LocallyAdaptiveLoss(**options, engine="array")
    grad = np.full(x.shape, np.nan)
    value = scene_value_and_grad(loss, x, y, grad, pixel_weight=w, tile=tile, grad_output=-1.5)
    right, right_grad = loss.value_and_grad(x, y, pixel_weight=w, grad_output=-1.5)
    np.testing.assert_allclose(value, right, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(
        grad, right_grad, rtol=0, atol=1e-12 * max(1e-3, abs(right_grad).max(initial=0))
    )


@pytest.mark.parametrize("halo", [0, 1])
def test_a_halo_that_is_too_small_would_be_noticed(halo, monkeypatch):
    """Halo 0 cuts windows off; halo 1 loses the windows beyond the edge that read the tile."""
    cut = scenes.tiles
    monkeypatch.setattr(scenes, "tiles", lambda loss, shape, spans, _: cut(loss, shape, spans, halo))
    loss, grad = LocallyAdaptiveLoss(), np.empty(X.shape)
    value = scene_value_and_grad(loss, X, Y, grad, tile=7)
    right, right_grad = loss.value_and_grad(X, Y)
    assert (abs(value / right - 1) > 1e-3) == (halo == 0)
    assert abs(grad - right_grad).max() > 1e-3 * abs(right_grad).max()


def test_float16_scenes_give_float32_gradients():
    x, loss = X.astype(np.float16), LocallyAdaptiveLoss()
    grad = np.empty(x.shape, np.float32)
    value = scene_value_and_grad(loss, x, Y, grad, tile=8)
    right, right_grad = loss.value_and_grad(x.astype(np.float32), Y)
    np.testing.assert_allclose(value, right, rtol=1e-6)
    np.testing.assert_allclose(grad, right_grad, rtol=0, atol=1e-6 * abs(right_grad).max())


class Slices:
    """No more than is asked of a source."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, slices):
        assert all(isinstance(s, slice) for s in slices)
        return self.array[slices].copy()


def test_a_source_needs_a_shape_a_dtype_and_slices():
    loss, grad = LocallyAdaptiveLoss(), np.empty(X.shape)
    value = scene_value_and_grad(loss, Slices(X), Slices(Y), grad, pixel_weight=Slices(W), tile=8)
    right, right_grad = loss.value_and_grad(X, Y, pixel_weight=W)
    np.testing.assert_allclose(value, right, rtol=1e-13)
    np.testing.assert_allclose(grad, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


def test_scenes_without_a_valid_window_or_a_pixel():
    loss = LocallyAdaptiveLoss(empty="nan")
    assert math.isnan(scene_parts(loss, X, np.full_like(Y, VOID), tile=8).value)
    assert scene_parts(LocallyAdaptiveLoss(), X[:0], Y[:0]).value == 0


def test_errors_tell_the_tile_and_what_is_allowed():
    loss, y = LocallyAdaptiveLoss(), Y.copy()
    y[1, 20, 17] = 77
    with pytest.raises(ValueError, match=r"77, first at \(1, 20, 17\)") as told:
        scene_parts(loss, X, y, tile=8)
    assert told.value.__notes__ == ["in the tile that reads labels[1:2, 14:21, 6:18]"]
    w = W.copy()
    w[0, 11, 3] = -1
    with pytest.raises(ValueError, match=r"first -1\.0 at \(0, 11, 3\)"):
        scene_parts(loss, X, np.zeros_like(Y), pixel_weight=w, tile=8)
    with pytest.raises(ValueError, match="no parts to combine"):
        scene_parts(LocallyAdaptiveLoss(reduction="none"), X, Y)
    with pytest.raises(ValueError, match="decided by each tile alone"):
        scene_parts(LocallyAdaptiveLoss(empty="raise"), X, Y)
    with pytest.raises(ValueError, match="tile=0 is not allowed"):
        scene_parts(loss, X, Y, tile=0)
    for tile in (True, 8.0, "8"):
        with pytest.raises(ValueError, match=f"tile={tile!r} is not allowed"):
            scene_parts(loss, X, Y, tile=tile)
    assert scene_parts(loss, X, Y, tile=np.int64(8)).value == scene_parts(loss, X, Y, tile=8).value
    with pytest.raises(ValueError, match="grad must have the shape"):
        scene_value_and_grad(loss, X, Y, np.empty(3))


def never(*slices):
    raise AssertionError("read")


class Unread(Slices):
    """A source that nothing may be read of."""

    __getitem__ = never


def views(tmp_path):
    """Ways to say the same memory or file twice: logits and a gradient that reaches into it."""
    at = 3 * X.nbytes
    mapped = np.memmap(tmp_path / "scene", np.float64, "w+", at, (2 * X.size,))

    def again(offset):
        return np.memmap(tmp_path / "." / "scene", np.float64, "r+", at + offset, X.shape)

    buffer = np.zeros((3, *X.shape[1:]))
    yield X, X
    yield buffer[:2], buffer[1:]
    yield mapped[: X.size].reshape(X.shape), again(0)
    yield again(8), again(X.nbytes)
    yield np.asarray(mapped)[X.size :].reshape(X.shape), again(X.nbytes - 8)
    yield again(0)[..., ::-1], again(0)


def test_a_gradient_that_would_spoil_what_is_still_to_be_read_is_refused(tmp_path):
    loss = LocallyAdaptiveLoss()
    for x, grad in views(tmp_path):
        before = x.copy()
        with pytest.raises(ValueError, match=r"grad overlaps logits.* of its own"):
            scene_value_and_grad(loss, x, Y, grad, tile=8)
        np.testing.assert_array_equal(x, before)
    both = np.zeros(X.shape)
    with pytest.raises(ValueError, match="grad overlaps labels"):
        scene_value_and_grad(loss, X, both.view(np.int64)[:, 0], both)
    with pytest.raises(ValueError, match="grad overlaps pixel_weight"):
        scene_value_and_grad(loss, X, Y, both, pixel_weight=both[:, 1])


def test_a_gradient_beside_the_logits_in_one_file_or_buffer_is_taken(tmp_path):
    file, both, right = (
        tmp_path / "both",
        np.empty((2, *X.shape)),
        LocallyAdaptiveLoss().value_and_grad(X, Y)[1],
    )
    np.concatenate([X, X]).tofile(file)
    x, grad = (np.memmap(file, np.float64, "r+", offset, X.shape) for offset in (0, X.nbytes))
    both[0] = X
    striped, mapped = (
        np.empty((2, *X.shape)),
        np.memmap(tmp_path / "file", np.float64, "w+", shape=(2, *X.shape)),
    )
    striped, mapped = (
        np.moveaxis(striped, 0, -1).copy(),
        np.moveaxis(mapped, 0, 1),
    )  # entries, images lie in turn
    striped[..., 0] = mapped[:, 0] = X
    for source, out in (
        (x, grad),
        (both[0], both[1]),
        (striped[..., 0], striped[..., 1]),
        (mapped[:, 0], mapped[:, 1]),
    ):
        scene_value_and_grad(LocallyAdaptiveLoss(), source, Y, out, tile=8)
        np.testing.assert_allclose(out, right, rtol=0, atol=1e-13 * abs(right).max())


def test_a_gradient_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    loss, x, read_only = LocallyAdaptiveLoss(), Unread(X), np.empty(X.shape)
    read_only.flags.writeable = False
    (tmp_path / "grad").write_bytes(bytes(X.nbytes))
    like_zarr = Slices(X)
    like_zarr.read_only = True
    for grad in (read_only, np.memmap(tmp_path / "grad", np.float64, "r", shape=X.shape), like_zarr):
        with pytest.raises(ValueError, match="grad is read-only"):
            scene_value_and_grad(loss, x, Y, grad, tile=8)
    for dtype in ("int64", "uint8", "complex128"):
        with pytest.raises(TypeError, match=f"grad must be of dtype float16, .*; got {dtype}"):
            scene_value_and_grad(loss, x, Y, np.empty(X.shape, dtype), tile=8)


def test_a_mask_is_not_lost():
    """netCDF4 and rasterio give masked arrays when they are read."""

    class Masked(Slices):
        def __getitem__(self, slices):
            return np.ma.masked_equal(self.array[slices], 0)

    loss = LocallyAdaptiveLoss()
    with pytest.raises(TypeError, match="logits is read as a masked array"):
        scene_parts(loss, Masked(X), Y, tile=8)
    with pytest.raises(TypeError, match="labels is read as a masked array"):
        scene_parts(loss, X, Masked(Y), tile=8)
    with pytest.raises(TypeError, match="pixel_weight is read as a masked array"):
        scene_parts(loss, X, Y, pixel_weight=Masked(W), tile=8)


def test_what_is_no_loss_is_refused_with_the_name_of_what_is():
    class Criterion:
        """As an adapter's: its options are the loss."""

        options = LocallyAdaptiveLoss()

    for wrong, told in (
        (lal_loss, "the function lal_loss"),
        (LocallyAdaptiveLoss, "the class LocallyAdaptiveLoss"),
        (None, "a builtins.NoneType"),
        (Criterion(), r"a .*Criterion: pass its \.options"),
    ):
        with pytest.raises(TypeError, match=rf"loss must be a lalref\.LocallyAdaptiveLoss, .*; got {told}$"):
            scene_parts(wrong, Unread(X), Y)


def test_shapes_that_do_not_fit_are_told_how_to_mend_as_in_memory():
    loss = LocallyAdaptiveLoss()
    for x, y, told in (
        (X, np.zeros(X.shape, np.int64), r"one-hot: .*argmax\(1\)"),
        (np.moveaxis(X, 1, -1), Y, "channels-last: pass axis=-1"),
        (X[0], Y[0], r"pass logits\[None\] and labels\[None\]"),
    ):
        for call in (loss, lambda x, y: scene_parts(loss, Unread(x), Unread(y), tile=8)):
            with pytest.raises(ValueError, match=told):
                call(x, y)


def test_maps_that_are_larger_than_the_logits_are_not_cropped():
    """Every tile would find labels enough."""
    loss = LocallyAdaptiveLoss()
    large = np.zeros((2, 42, 36), np.int64)
    with pytest.raises(
        ValueError, match=r"labels must have the shape of logits without class axis 1, \(2, 21, 18\)"
    ):
        scene_parts(loss, X, large)
    with pytest.raises(ValueError, match="pixel_weight must have the shape"):
        scene_value_and_grad(loss, X, Y, np.empty_like(X), pixel_weight=np.ones((3, 21, 18)))
    with pytest.raises(TypeError, match="pixel_weight must be floating-point; got int64"):
        scene_parts(loss, X, Y, pixel_weight=np.ones(Y.shape, np.int64))


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int64", "bool", "complex64"])
def test_logits_of_another_dtype_are_refused_as_the_loss_refuses_them(dtype):
    """Two bytes wide is not 16-bit floating-point."""
    x, loss = X.astype(dtype), LocallyAdaptiveLoss()
    for call in (
        lambda: loss(x, Y),
        lambda: scene_parts(loss, x, Y, tile=8),
        lambda: scene_value_and_grad(loss, x, Y, np.empty(x.shape), tile=8),
    ):
        with pytest.raises(TypeError, match=f"logits must be of dtype float16, .*; got {dtype}"):
            call()


def test_progress_is_shown(capsys):
    scene_parts(LocallyAdaptiveLoss(), X, Y, tile=16, progress=True)
    assert "loss of 8 tiles" in capsys.readouterr().out


@pytest.mark.slow
@needs_linux_and_memory
def test_a_scene_in_a_quarter_of_its_memory(tmp_path):
    """608 MB of float16 logits, and a gradient of twice that: the whole image's, in every pixel."""
    large_scene(tmp_path, "make")
    large_scene(tmp_path, "tiles")
    assert large_scene(tmp_path, "whole") == "equal\n"


@pytest.mark.skipif(not bench.STATUS.exists(), reason="only Linux tells what memory a process has")
def test_the_benchmark_sees_memory_that_is_held_for_a_moment():
    with bench._memory() as held:
        block, seen, until = np.ones(1 << 23), len(held), time.monotonic() + 60
        while len(held) < seen + 2 and time.monotonic() < until:
            time.sleep(0.01)
        size = block.nbytes
        del block
    assert max(held) - held[0] > 0.9 * size


def test_the_benchmark_checks_what_it_times(tmp_path, monkeypatch, capsys):
    for gradient, name in ((False, "loss: "), (True, "loss and gradient: ")):
        bench.main(500, gradient, str(tmp_path), tile=128)
        printed = capsys.readouterr().out
        assert "(1, 19, 500, 500) float16" in printed
        assert f"\n{name}" in printed
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="side=300 is not allowed"):
        bench.main(300, False, None)
    monkeypatch.setattr(bench, "STATUS", tmp_path / "not Linux")
    bench.main(500, False, str(tmp_path), tile=128)
    assert "s, memory not told here" in capsys.readouterr().out
    cut = scenes.tiles
    for halo, wrong in ((0, "the loss is"), (1, "the gradient of strip 0")):
        monkeypatch.setattr(scenes, "tiles", lambda *a, halo=halo: cut(*a[:3], halo))
        with pytest.raises(ValueError, match=wrong):
            bench.main(500, True, None, tile=128)
