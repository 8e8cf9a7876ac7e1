"""The cuda engine's own code and kernels on the CPU, held to the table of cases and to the array engine."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import OPTIONS, X, Y, each_dtype, of_dtype, same_bits

import lalref
from cuda_host.engine import on_host
from cuda_host.host import HostModule
from lalref.engines import kernels, kernels_geometry
from lalref.oracle import golden
from lalref.oracle.cases import CASES
from lalref.oracle.inputs import VOID, blobs, eighths, scattered
from lalref.oracle.units import error_unit
from lalref.oracle.verify import in_units

SERVED = [case for case in CASES if case.labels.ndim <= 3]


def value_and_grad(x, y, *, engine=kernels, **arguments):
    """By the cuda engine on the CPU, or by the array engine."""
    if engine == "array":
        return lalref.lal_value_and_grad(x, y, engine="array", **arguments)
    return lalref.lal_value_and_grad(x, y, **arguments)


@each_dtype
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_the_table_of_cases_within_two_error_units(case, dtype):
    right = golden.load()[case.name]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    with on_host():
        value, grad = lalref.lal_value_and_grad(
            of_dtype(case.given_logits, dtype), case.labels, **case.arguments
        )
    assert value.dtype == np.float64 if dtype == "float64" else np.float32
    assert grad.dtype == of_dtype(np.zeros(1), dtype).dtype
    assert in_units(value, right.value, unit.value).max(initial=0) <= 2
    assert in_units(grad, right.grad, unit.grad).max(initial=0) <= 2


# Windows of every way to pool: by cells, by class with one and with several rounds of column sums, strided.
WINDOWS = {
    "3": {"kernel_size": 3},
    "5": {"kernel_size": 5},
    "7": {"kernel_size": 7, "sigma": 2.0},
    "15, flat": {"kernel_size": 15, "sigma": None},
    "31": {"kernel_size": 31, "sigma": 6.0},
    "1 by 31": {"kernel_size": (1, 31), "sigma": 4.0},
    "31 by 3": {"kernel_size": (31, 3), "sigma": None},
    "9 by 21, counted": {"kernel_size": (9, 21), "sigma": 0.5, "normalize": "count"},
    "11, stride 2 by 3": {"kernel_size": 11, "stride": (2, 3)},
}
LABELS = {
    "blobs": blobs((2, 19, 37), 3, 5, 11),
    "noise": scattered((2, 19, 37), 5, 12, VOID),
    "one class": np.zeros((2, 19, 37), int),
}


@pytest.mark.parametrize("small_tiles", [False, True], ids=["tiles", "small tiles"])
@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_every_way_to_pool_agrees_with_the_array_engine(labels, window, space, small_tiles):
    x = eighths((2, 12, 19, 37), 6)
    with on_host(small_tiles=small_tiles):
        value, grad = value_and_grad(x, labels, space=space, **window)
    right_value, right_grad = value_and_grad(x, labels, space=space, engine="array", **window)
    np.testing.assert_allclose(value, right_value, rtol=1e-13)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-11, atol=1e-14 * abs(right_grad).max())


@pytest.mark.parametrize("far", [-30.0, 1000.0, -1e6, 1e30])
@pytest.mark.parametrize("kernel_size", [5, 15, 31])
def test_a_pixel_unlike_the_others_of_its_tile_costs_other_windows_no_digits(kernel_size, far):
    x, y = eighths((1, 3, 16, 64), 14).astype(np.float32) / 7, np.zeros((1, 16, 64), int)
    x[0, 1, 7::8, 31::32] = far  # the last of each tile, which `list_kinds` names
    options = {"kernel_size": kernel_size, "sigma": None, "reduction": "none"}
    with on_host():
        value = lalref.lal_loss(x, y, **options)
    right = lalref.lal_loss(x.astype(np.float64), y, engine="array", **options)
    np.testing.assert_allclose(value, right, rtol=4e-7, atol=4e-7)


def test_rounds_of_column_sums_that_do_not_fit_into_shared_memory_at_once(monkeypatch):
    monkeypatch.setattr(kernels_geometry, "SHARED_MEMORY", 20 << 10)
    x, y = eighths((1, 3, 12, 40), 7), LABELS["blobs"][:1, :12].repeat(2, 2)[:, :, :40]
    geometry = kernels_geometry.Geometry.of(
        x, y.shape[1:], lalref.LocallyAdaptiveLoss(kernel_size=21, sigma=None), x.dtype
    )
    assert geometry.call["most"][0] > 0
    assert 0 < geometry.call["span"][0] < 11
    with on_host():
        value, grad = value_and_grad(x, y, kernel_size=21, sigma=None)
    right_value, right_grad = value_and_grad(x, y, kernel_size=21, sigma=None, engine="array")
    np.testing.assert_allclose(value, right_value, rtol=1e-13)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-11, atol=1e-14 * abs(right_grad).max())


def test_every_call_of_these_tests_comes_to_the_kernels(monkeypatch):
    from lalref.engines import array, loops

    for engine in (array, loops):
        for name in ("window_losses", "window_losses_vjp"):
            monkeypatch.setattr(engine, name, pytest.fail)
    monkeypatch.setattr(loops, "value_and_grad", pytest.fail)
    loss, x = lalref.LocallyAdaptiveLoss(), X.astype(np.float32)
    with on_host():
        _, cache = loss.forward(x, Y)
        loss.backward(cache)
        loss.value_and_grad(x, Y, total=loss.parts(x, Y))
        assert loss(x, Y) > 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_backward_after_forward_is_value_and_grad(options):
    x = X.astype(np.float32)
    loss = lalref.LocallyAdaptiveLoss(**options)
    with on_host():
        value, cache = loss.forward(x, Y)
        grad = loss.backward(cache, 1.5)
        both = loss.value_and_grad(x, Y, grad_output=1.5)
        alone = loss(x, Y)
    assert same_bits(value, both[0])
    assert same_bits(alone, both[0])
    np.testing.assert_allclose(grad, both[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [3, 9])
def test_what_nothing_reads_may_be_nan(space, kernel_size):
    x, y = eighths((2, 4, 9, 13), 9), blobs((2, 9, 13), 4)
    unread = (y == 3)[:, None] & np.ones((1, 4, 1, 1), bool)  # a class of weight 0
    options = {"space": space, "kernel_size": kernel_size, "class_weight": (1, 2, 3, 0), "ignore_index": 2}
    unread |= (y == 2)[:, None]
    with on_host(small_tiles=True):
        value, grad = lalref.lal_value_and_grad(x, y, **options)
        again, grad_again = lalref.lal_value_and_grad(np.where(unread, np.nan, x), y, **options)
    assert same_bits(value, again)
    assert same_bits(grad, grad_again)
    assert not np.where(unread, grad, 0).any()


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [3, 9])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_go_where_the_array_engine_says(space, kernel_size, poison):
    x, y = eighths((1, 3, 9, 13), 10), blobs((1, 9, 13), 3)
    x[0, :, 4, 6] = poison  # every class of one pixel
    x[0, 1, 0, 0] = poison  # one class of another
    options = {"space": space, "kernel_size": kernel_size, "p": 1, "reduction": "none"}
    with on_host(small_tiles=True):
        value, grad = value_and_grad(x, y, **options)
    right_value, right_grad = value_and_grad(x, y, engine="array", **options)
    np.testing.assert_allclose(value, right_value, rtol=1e-12)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("stride", [1, 2], ids=["by class", "by cells"])
def test_an_excluded_class_stays_so_where_its_weight_would_be_flushed_to_0(stride):
    """exp(-14^2 / 2) is a subnormal float32."""
    x, y = eighths((1, 3, 1, 40), 15).astype(np.float32), np.zeros((1, 1, 40), int)
    x[0, 2, 0, 20] = -np.inf
    options = {"kernel_size": 29, "p": 2, "stride": stride}
    with on_host():
        value, grad = value_and_grad(x, y, **options)
    right_value, right_grad = value_and_grad(x, y, engine="array", **options)
    np.testing.assert_allclose(value, right_value, rtol=1e-6)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-4, atol=1e-9)
    assert grad[0, 2, 0, 20] == 0


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_labels_out_of_range_that_nobody_checked_are_nan_in_their_own_windows_only(space):
    x, y = eighths((1, 3, 9, 13), 11), blobs((1, 9, 13), 3)
    bad = np.where(y == 1, 7, y)
    options = {"space": space, "reduction": "none", "check": False}
    with on_host(small_tiles=True):
        value, grad = value_and_grad(x, bad, **options)
        fine, fine_grad = value_and_grad(x, y, **options)
    assert same_bits(np.isnan(value), bad == 7)
    assert same_bits(np.isnan(grad), np.broadcast_to((bad == 7)[:, None], x.shape))
    assert same_bits(value[bad != 7], fine[bad != 7])
    there = np.broadcast_to((bad != 7)[:, None], x.shape)
    assert same_bits(grad[there], fine_grad[there])


@pytest.mark.parametrize(
    "layout",
    {
        "channels last in memory": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        "every other element": lambda x: np.repeat(np.repeat(x, 2, 3), 2, 1)[:, ::2, :, ::2],
        "Fortran order": np.asfortranarray,
    }.values(),
)
@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_any_strides_give_the_same_bits(layout, space):
    x, y = eighths((2, 3, 9, 13), 12).astype(np.float32), blobs((2, 9, 13), 3)
    with on_host(small_tiles=True):
        value, grad = lalref.lal_value_and_grad(x, y, space=space)
        again, grad_again = lalref.lal_value_and_grad(layout(x), y, space=space)
    assert same_bits(value, again)
    assert same_bits(np.ascontiguousarray(grad), np.ascontiguousarray(grad_again))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (0, 3), (3, 2, 0)])
def test_nothing_to_launch(shape):
    with on_host():
        value, grad = lalref.lal_value_and_grad(np.zeros(shape), np.zeros((shape[0], *shape[2:]), int))
    assert value == 0
    assert grad.shape == shape


@settings(max_examples=60)
@given(st.data())
def test_any_small_call_agrees_with_the_array_engine(data):
    S = data.draw(st.lists(st.integers(1, 9), max_size=2))
    N, C = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    space = data.draw(st.sampled_from(["logits", "probabilities"]))
    options = {
        "space": space,
        "kernel_size": data.draw(st.sampled_from([1, 3, 5, 9, 17])),
        "sigma": data.draw(st.sampled_from([None, 0.05, 0.7, 3.0])),
        "stride": data.draw(st.sampled_from([1, 1, 2, 3])),
        "normalize": data.draw(st.sampled_from(["weights", "count"])),
        "p": data.draw(st.sampled_from([1.0, 2.0, 5.0, np.inf])),
        "reduction": data.draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.25, 1.0])) if space == "logits" else 0.0,
    }
    x = eighths((N, C, *S), data.draw(st.integers(0, 99)))
    y = scattered((N, *S), data.draw(st.integers(0, 99)), C, VOID)
    with on_host(small_tiles=data.draw(st.booleans())):
        value, grad = value_and_grad(x, y, **options)
    right_value, right_grad = value_and_grad(x, y, engine="array", **options)
    np.testing.assert_allclose(value, right_value, rtol=1e-12)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-10, atol=1e-14)


def test_the_scratch_is_a_quarter_of_the_gradient_at_most_and_groups_change_no_bit(monkeypatch):
    x, y = eighths((3, 5, 9, 13), 13).astype(np.float32), blobs((3, 9, 13), 3)
    with on_host():
        _, grad = lalref.lal_value_and_grad(x, y)
    results = []
    for planes in (1, 2, 5, 10):  # one channel of one image to two whole images at a time
        monkeypatch.setattr(kernels_geometry, "SCRATCH", planes * 9 * 13 * 4)
        geometry = kernels_geometry.Geometry.of(x, y.shape[1:], lalref.LocallyAdaptiveLoss(), x.dtype)
        assert np.prod(geometry.groups) <= min(planes, 15 // 4)
        with on_host():
            results.append(lalref.lal_value_and_grad(x, y)[1])
    assert all(same_bits(grad, other) for other in results)


# --- 16-bit numbers, converted in the kernels by hand -------------------------------------------------------

CONVERT = """
template <typename X> __global__ void convert(const X* in, float* wide, const float* number, X* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { wide[i] = widen(in[i]); narrow(number[i], out[i]); }
}
"""


@pytest.mark.parametrize("flush", [False, True], ids=["subnormal numbers", "flushed"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_16_bit_number_widens_and_any_float_narrows_as_the_standard_says(name, flush):
    dtype = np.dtype(np.float16 if name == "float16" else ml_dtypes.bfloat16)
    bits = np.arange(2**16, dtype=np.uint16)
    every = bits.view(dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        apart = np.nextafter(every, np.float32(np.inf)), np.nextafter(every, np.float32(-np.inf))
        middle = (every.astype(np.float64) + np.roll(every, -1)) / 2  # the ties between neighbours
        numbers = np.concatenate(
            [every, *apart, middle.astype(np.float32), np.float32([1e-8, 65519, 65520, 3e38])]
        )
        right = numbers.astype(dtype)
    n = -(-numbers.size // 2**16) * 2**16
    numbers.resize(n, refcheck=False)
    right.resize(n, refcheck=False)
    module = HostModule(kernels.source() + CONVERT, [f"convert<{name}>"], flush=flush)
    wide, out = np.empty(n, np.float32), np.empty(n, dtype)
    args = (np.tile(bits.view(dtype), n // 2**16), wide, numbers, out, np.int32(n))
    module.get_function(f"convert<{name}>")((n // 256,), (256,), args)
    nan = np.isnan(every)
    assert (wide[: 2**16][~nan] == every[~nan]).all()
    assert np.isnan(wide[: 2**16][nan]).all()
    nan = np.isnan(right)
    assert (out.view(np.uint16)[~nan] == right.view(np.uint16)[~nan]).all()
    assert np.isnan(out[nan]).all()
