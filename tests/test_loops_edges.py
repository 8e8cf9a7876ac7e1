"""The numba engine where its code invites mistakes: odd logits, pixels without windows, far windows, errors."""

import subprocess
import sys

import numpy as np
import pytest
from samples import of_dtype, same_bits

import lalref
from lalref.bench.inputs import labels, logits
from lalref.oracle import golden
from lalref.oracle.cases import CASES
from lalref.oracle.units import error_unit
from lalref.oracle.verify import in_units

pytest.importorskip("numba")

from lalref.engines import loops, loops_margins, loops_threads
from lalref.engines.loops_geometry import flat_labels, flat_view
from lalref.engines.loops_margins import first_windows
from lalref.engines.loops_plan import Plan, _only_class_in_reach
from lalref.engines.loops_rows import Image, room

ENGINES = ("array", "numba")


def both(call):
    return [np.asarray(call(engine=engine)) for engine in ENGINES]


@pytest.mark.parametrize("masked", [-1e4, -1e9, np.finfo("f").min])
def test_a_class_that_is_masked_by_a_large_negative_logit_changes_no_loss(masked):
    x = np.zeros((1, 3, 2, 40), "f")
    x[:, 0], x[:, 1], x[:, 2] = 2, 1, masked
    value, found = both(lambda engine: lalref.lal_loss(x, np.zeros((1, 2, 40), int), p=1, engine=engine))
    assert found == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-6)
    assert value == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("odd", [-1e9, 1e9])
def test_one_odd_pixel_leaves_the_losses_of_its_class_alone(channel, odd):
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 40)).astype("f")
    x[0, channel, 0, 0] = odd
    y = np.zeros((1, 2, 40), int)
    right, found = both(lambda engine: lalref.lal_loss(x, y, kernel_size=1, reduction="none", engine=engine))
    np.testing.assert_allclose(found[0, :, 1:], right[0, :, 1:], rtol=1e-5)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("without", ["class_weight", "pixel_weight", "stride"])
def test_a_pixel_among_windows_of_another_class_receives_nothing_from_them(space, without):
    """On the way back pixels without a window are among those that receive; in wide images, far from any border."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 2, 3, 80)).astype("f")
    y = np.ones((1, 3, 80), np.uint8)
    y[0, 1, 40] = 0
    options = {"class_weight": [0, 1]} if without == "class_weight" else {}
    if without == "stride":
        options = {"stride": (2, 1)}
    if without == "pixel_weight":
        weight = np.ones((1, 3, 80))
        weight[0, 1, 40] = 0
        options = {"pixel_weight": weight}
    right, found = both(
        lambda engine: lalref.lal_value_and_grad(
            x, y, kernel_size=3, p=1, space=space, engine=engine, **options
        )[1]
    )
    assert not right[0, :, 1, 40].any()
    assert not found[0, :, 1, 40].any()
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-8)


def test_a_column_without_labels_is_no_other_class():
    """Else blocks beside the padding or a void border would ask labels of every pixel in vain."""
    import numba

    @numba.njit
    def alone(high, low):
        e = np.empty(1, np.int32)
        return _only_class_in_reach(Plan(e, e, e, np.empty(1, np.bool_), e, high, low, e), np.int32(3), 16, 1)

    high, low = np.full(48, 3, np.int32), np.full(48, 3 - 2**31, np.int32)
    assert alone(high, low)
    high[15], low[15] = -1, 2**31 - 1
    assert alone(high, low)
    low[15] = 2 - 2**31
    assert not alone(high, low)


def agrees_in_far_windows(shape, kernel, dtype, **options):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 3, *shape)).astype(dtype)
    y = rng.integers(0, 3, (1, *(max(1, n // 20) for n in shape)))
    for axis, n in enumerate(shape, 1):
        y = np.repeat(y, -(-n // y.shape[axis]), axis=axis).take(range(n), axis=axis)
    (value, grad), (found, found_grad) = (
        lalref.lal_value_and_grad(x, y, kernel_size=kernel, engine=engine, **options) for engine in ENGINES
    )
    most = 2e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, value, rtol=most)
    np.testing.assert_allclose(found_grad, grad, rtol=0, atol=most * np.abs(grad).max())


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((9, 700), 31), ((40, 90), 35), ((80, 150), 65), ((80, 50), (65, 1)), ((50, 150), (1, 65)), ((50, 60), (31, 3)),
        ((50, 60), (3, 31)), ((12, 14, 40), (11, 9, 19)), ((200,), 63),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sigma", [None, 8.0, 0.3])
def test_far_windows_of_any_form_agree_with_the_array_engine(shape, kernel, dtype, sigma):
    """Several sets of rings, and by count rings that weigh nothing."""
    normalize = "count" if sigma == 0.3 else "weights"
    agrees_in_far_windows(shape, kernel, dtype, sigma=sigma, normalize=normalize)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("stride", [1, (2, 3, 2)])
@pytest.mark.parametrize("normalize", ["weights", "count"])
@pytest.mark.parametrize(("shape", "kernel"), [((40, 90), 31), ((6, 9, 40), (3, 5, 19)), ((200,), 63)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_windows_in_both_spaces_at_every_pixel_and_at_some(
    space, stride, normalize, shape, kernel, dtype
):
    stride = stride if stride == 1 else stride[: len(shape)]
    options = {"space": space, "stride": stride, "normalize": normalize}
    agrees_in_far_windows(shape, kernel, dtype, sigma=3.0, **options)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel_size", [3, 19, 31])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("kind", ["blobs", "noise"])
def test_a_row_in_several_tiles_has_the_bits_of_one(space, dtype, kernel_size, stride, kind, monkeypatch):
    """Rows too long for a core's cache: tiles read into one another, and begin beside the stride's windows."""
    x, y = logits((2, 3, 9, 600)).astype(dtype), labels(kind, (2, 9, 600), 3)
    options = {"kernel_size": kernel_size, "sigma": 2.0, "stride": stride, "space": space}
    loss = lalref.LocallyAdaptiveLoss(**options, normalize="count", reduction="none", engine="numba")
    tiles, cut = [], loops.Problem._tiles

    def told(problem):
        tiles.append([(task.w0, task.w1) for task in cut(problem) if task.n == task.a0 == 0])
        return cut(problem)

    monkeypatch.setattr(loops.Problem, "_tiles", told)
    right = loss.value_and_grad(x, y)
    monkeypatch.setattr(loops, "_CACHE_BYTES", 1)
    found = loss.value_and_grad(x, y)
    assert tiles[0] == [(0, 600)]
    assert tiles[-1] == [(0, 208), (208, 416), (416, 600)]
    assert right[0].any()
    assert right[1].any()
    assert same_bits(found[0], right[0])
    assert same_bits(found[1], right[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_no_golden_case_is_more_than_twice_as_far_off_as_with_the_array_engine(dtype):
    """Where that is off by less than a quarter of a unit, twice a quarter: a case may come out exact by chance."""
    for case in (case for case in CASES if case.labels.ndim <= 4):
        right = golden.load()[case.name]
        unit = error_unit(case, dtype, right.value[0], right.grad[0])
        x, off = of_dtype(case.given_logits, dtype), {}
        for engine in ENGINES:
            value, grad = lalref.lal_value_and_grad(x, case.labels, engine=engine, **case.arguments)
            off_value = in_units(value.astype(float), right.value, unit.value).max(initial=0)
            off_grad = in_units(grad.astype(float), right.grad, unit.grad).max(initial=0)
            off[engine] = max(off_value, off_grad)
        assert off["numba"] <= 2 * max(off["array"], 0.25), case.name


def test_a_large_upstream_gradient_overflows_nowhere_on_the_way():
    x, y = np.zeros((1, 2, 31, 31), "f"), np.zeros((1, 31, 31), int)
    right, found = both(
        lambda engine: lalref.lal_value_and_grad(x, y, kernel_size=31, grad_output=1e30, engine=engine)[1]
    )
    np.testing.assert_allclose(found, right, rtol=1e-5)


def test_the_seat_is_free_again_after_an_error(monkeypatch):
    def broken():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(loops_threads, "number_of_threads", lambda: 2)
    monkeypatch.setattr(loops_threads, "_workers", broken)
    with pytest.raises(RuntimeError, match="new thread"):
        loops_threads.run(print, [1, 2, 3])
    assert not loops_threads._seat.locked()


def test_the_engine_works_where_no_folder_may_be_written():
    program = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
        "from lalref.engines import loops_maps\n"
        "import numpy as np; print(*loops_maps.power_sum(np.array([1.0, 3.0, 1.5]), np.empty(0), 1, 0, 3))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["3.0", f"{5.5 / 3}"], done.stderr


@pytest.mark.parametrize("dtype", [np.int8, np.int32])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("C", [5, 63, 64, 65, 130])
def test_the_first_windows_of_each_class_are_found(C, strides, dtype):
    rng = np.random.default_rng(C)
    most, shape = 3, (9, 1, 200)
    y = np.repeat(rng.integers(-1, min(C, 127), (2, 9, 1, 10)), 20, axis=3).astype(dtype)
    y[1, 8, 0, -1] = 4  # the last of all is a rare class
    image = Image(C, *shape, *strides)
    valid = rng.random(y[:, :: strides[0], :, :: strides[2]].shape) < 0.9
    found = np.empty((C, most), np.int64)
    first_windows(1, image, flat_labels(y), flat_view(valid), found)
    kept = np.full(y.shape[1:], -1)
    kept[:: strides[0], :, :: strides[2]] = np.where(valid[1], y[1, :: strides[0], :, :: strides[2]], -1)
    for kind in range(C):
        right = np.flatnonzero(kept == kind)[:most]
        assert found[kind].tolist() == [*right, *[-1] * (most - len(right))]


@pytest.mark.parametrize("C", [60, 64, 130])
def test_rows_without_a_class_still_looked_for_are_passed_over(C, monkeypatch):
    """As they are in plain Python, so that looks can be counted: one row holds all but the last class."""
    looks = []

    def label_at(y, i):
        looks.append(i)
        return int(y.narrow[i]) if len(y.narrow) > 0 else int(y.wide[i])

    monkeypatch.setattr(loops_margins, "_any_open", loops_margins._any_open.py_func)
    monkeypatch.setattr(loops_margins, "label_at", label_at)
    y = np.full((1, 9, 1, 200), 5, np.int32)
    y[0, 0, 0, : C - 1] = np.arange(C - 1)
    y[0, 8, 0, -1] = C - 1
    found = np.empty((C, 1), np.int64)
    image = Image(C, 9, 1, 200, 1, 1, 1)
    loops_margins.first_windows.py_func(0, image, flat_labels(y), flat_view(y >= 0), found)
    assert found[:, 0].tolist() == [*range(C - 1), y.size - 1]
    assert len(looks) <= 200 + 64


@pytest.mark.parametrize("dtype", ["i", "f", "d"])
def test_rows_begin_where_cache_lines_do(dtype):
    import numba

    @numba.njit
    def address(count, like):
        rows = room(count, like, 7)
        return rows.ctypes.data, rows

    for count in (1, 100, 368 * 30, 70001):
        at, rows = address(count, np.empty(0, dtype))
        assert at % 64 == 0
        assert rows.shape == (count,)
        assert (rows == 7).all()
