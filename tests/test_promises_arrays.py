"""What is promised about arrays: layouts, byte orders, shapes, dtypes, libraries; inputs are left alone."""

import importlib
import inspect

import array_api_strict
import numpy as np
import pytest
from samples import (
    LAYOUTS,
    MOST_AXES,
    OMEGA,
    OPTIONS,
    V,
    X,
    Y,
    each_dtype,
    each_engine,
    each_layout,
    each_option,
    of_dtype,
    same_bits,
)

from lalref import LocallyAdaptiveLoss, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.oracle.inputs import VOID, eighths, scattered

CALLS = {
    "loss": lambda x, y, v, **options: (lal_loss(x, y, **options),),
    "gradient": lambda x, y, v, **options: lal_value_and_grad(x, y, **options),
    "jvp": lambda x, y, v, **options: lal_jvp(x, y, v, **options),
    "hvp": lambda x, y, v, **options: lal_hvp(x, y, v, **options),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def close(a, b, rtol=1e-12):
    """Whether all entries agree to rounding in float64, next to the largest."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return a.shape == b.shape and bool((abs(a - b) <= rtol * abs(b).max(initial=1e-300)).all())


# ---- layouts --------------------------------------------------------------------------------------


@each_layout
@each_option
@each_call
def test_non_contiguous_reversed_broadcast_read_only_and_big_endian_arrays_give_right_answers(
    call, options, layout
):
    x, y, v, omega = (layout(a) for a in (X, Y, V, OMEGA))
    plain = [np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for a in (x, y, v, omega)]
    found = call(x, y, v, pixel_weight=omega, **options)
    expected = call(*plain[:3], pixel_weight=plain[3], **options)
    for a, b in zip(found, expected, strict=True):
        assert close(a, b)
        assert np.asarray(a).dtype == np.float64
        assert np.asarray(a).dtype.isnative


def test_the_layouts_are_what_they_are_called():
    made = {name: layout(X) for name, layout in LAYOUTS.items()}
    assert all(s < 0 for s in made["reversed"].strides)
    assert made["Fortran-ordered"].flags.f_contiguous
    assert made["broadcast over the batch"].strides[0] == 0
    assert made["broadcast over columns"].strides[-1] == 0
    assert not made["spread"].flags.forc
    assert not made["read-only"].flags.writeable
    assert not made["unaligned"].flags.aligned
    assert {made["big-endian"].dtype.isnative, made["little-endian"].dtype.isnative} == {True, False}


@each_engine
@each_dtype
@each_layout
def test_every_dtype_in_every_layout(engine, dtype, layout):
    x, y = layout(of_dtype(X, dtype)), layout(Y)
    value, grad = lal_value_and_grad(x, y, engine=engine)
    plain = np.ascontiguousarray(x, x.dtype.newbyteorder("="))
    right_value, right_grad = lal_value_and_grad(plain, np.ascontiguousarray(y), engine=engine)
    eps = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-20, "float64": 2**-49}[dtype]
    assert close(value, right_value, rtol=2**-20)
    assert close(grad, right_grad, rtol=eps)
    assert grad.dtype == plain.dtype  # native byte order


@each_engine
def test_an_upstream_map_in_any_layout(engine):
    upstream = eighths((2, 5, 4), 5)
    options = {"reduction": "none", "engine": engine}
    for layout in LAYOUTS.values():
        u = layout(upstream)
        grad = lal_value_and_grad(X, Y, grad_output=u, **options)[1]
        plain = np.ascontiguousarray(u, u.dtype.newbyteorder("="))
        assert close(grad, lal_value_and_grad(X, Y, grad_output=plain, **options)[1])


@each_call
@each_option
def test_inputs_are_never_written_to_and_no_view_of_them_is_returned(call, options):
    given = [X.copy(), Y.copy(), V.copy(), OMEGA.copy()]
    before = [a.tobytes() for a in given]
    x, y, v, omega = given
    found = call(x, y, v, pixel_weight=omega, **options)
    assert [a.tobytes() for a in given] == before
    assert not any(np.shares_memory(a, b) for a in found for b in given)


def test_forward_backward_inspect_and_parts_leave_inputs_alone_and_return_no_view():
    upstream = eighths((2, 5, 4), 5)
    for options in OPTIONS.values():
        loss, given = LocallyAdaptiveLoss(**options), [X.copy(), Y.copy(), OMEGA.copy(), upstream.copy()]
        before = [a.tobytes() for a in given]
        x, y, omega, up = given
        value, cache = loss.forward(x, y, pixel_weight=omega)
        up = up[:, : value.shape[1], : value.shape[2]] if loss.reduction == "none" else 0.5
        grad = loss.backward(cache, up)
        maps = vars(loss.inspect(x, y, pixel_weight=omega)).values()
        if loss.reduction != "none":
            loss.parts(x, y, pixel_weight=omega)
        assert [a.tobytes() for a in given] == before
        assert not any(np.shares_memory(a, b) for a in (value, grad, *maps) for b in given)


@each_call
@each_option
def test_the_same_bits_on_every_run(call, options):
    first = call(X, Y, V, pixel_weight=OMEGA, **options)
    for _ in range(3):
        again = call(X.copy(), Y.copy(), V.copy(), pixel_weight=OMEGA.copy(), **options)
        assert all(map(same_bits, again, first))


# ---- shapes ---------------------------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize(
    "shape",
    [(1, 3, 4, 4), (1, 1, 4, 4), (2, 1), (3, 4), (1, 1), (2, 3, 1), (1, 3, 1, 1), (2, 2, 7), (1, 2, 2, 3, 2),
     (1, 2, 2, 1, 2, 2), (1, 2, 1, 2, 2, 1, 2), (0, 3, 4, 4), (2, 3, 0, 4), (0, 3), (2, 3, 4, 0, 2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kernel_size", [1, 3, 9])
def test_every_rank_and_kernels_larger_than_the_image(engine, shape, kernel_size):
    """N = 1, C = 1, 0 to 5 spatial axes, empty batches and images: the definition's value."""
    x, y = eighths(shape, 6), scattered((shape[0], *shape[2:]), 7, shape[1], VOID)
    if len(shape) - 2 > MOST_AXES[engine]:
        with pytest.raises(ValueError, match="spatial axes"):
            lal_loss(x, y, engine=engine)
        return
    for space in ("logits", "probabilities"):
        for reduction in ("mean", "none"):
            options = {"kernel_size": kernel_size, "space": space, "reduction": reduction}
            value, grad = lal_value_and_grad(x, y, engine=engine, **options)
            right = lal_loss(x, y, engine="definition", **options)
            assert np.shape(value) == np.shape(right) == (y.shape if reduction == "none" else ())
            np.testing.assert_allclose(value, right, rtol=1e-13, atol=1e-15)
            assert grad.shape == shape
            assert (abs(grad.sum(1)) < 1e-14).all()  # a shift of all classes changes nothing


@each_engine
def test_one_class_has_no_loss_and_no_gradient(engine):
    x, y = eighths((2, 1, 4, 4), 8), scattered((2, 4, 4), 9, 1, VOID)
    for options in ({}, {"p": 1}, {"space": "probabilities"}, {"label_smoothing": 0.5}, {"p": np.inf}):
        value, grad = lal_value_and_grad(x, y, engine=engine, **options)
        assert value == 0
        assert not grad.any()


@each_engine
@each_option
@pytest.mark.parametrize("axis", [-3, -2, -1, 2, 3])
def test_the_class_axis_is_where_axis_says(engine, options, axis):
    moved = np.moveaxis(X, 1, axis)
    right = lal_value_and_grad(X, Y, engine=engine, **options)
    found = lal_value_and_grad(moved, Y, engine=engine, axis=axis, **options)
    np.testing.assert_allclose(found[0], right[0], rtol=1e-14)
    np.testing.assert_allclose(found[1], np.moveaxis(right[1], 1, axis), rtol=1e-11, atol=1e-17)


def test_jvp_and_hvp_of_channels_last():
    x, v = (np.moveaxis(a, 1, -1) for a in (X, V))
    np.testing.assert_allclose(lal_jvp(x, Y, v, axis=-1), lal_jvp(X, Y, V), rtol=1e-13)
    for a, b in zip(lal_hvp(x, Y, v, axis=-1), lal_hvp(X, Y, V), strict=True):
        np.testing.assert_allclose(a, np.moveaxis(b, 1, -1), rtol=1e-11, atol=1e-17)


# ---- dtypes ---------------------------------------------------------------------------------------


@each_dtype
@each_option
@each_call
def test_values_are_float32_or_float64_and_gradients_as_the_logits(call, options, dtype):
    x, v = of_dtype(X, dtype), of_dtype(V, dtype)
    working = np.float64 if dtype == "float64" else np.float32
    grid = lal_loss(X, Y, **options).shape
    for found in call(x, Y, v, **options):
        assert (found.shape, found.dtype) in [(grid, working), (X.shape, x.dtype)]
    value = call(x, Y, v, **options)[0]
    if call is not CALLS["hvp"]:
        assert (value.shape, value.dtype) == (grid, working)


@each_engine
@each_option
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("upstream", [1.0, 0.0, -0.5, 1.7, 65504.0, 2.0**-14])
def test_16_bit_logits_are_worked_out_in_float32_and_rounded_once(engine, options, dtype, upstream):
    x = of_dtype(X, dtype)
    call = {"engine": engine, "grad_output": upstream, **options}
    value, grad = lal_value_and_grad(x, Y, **call)
    wide_value, wide_grad = lal_value_and_grad(x.astype(np.float32), Y, **call)
    assert same_bits(value, wide_value)
    with np.errstate(over="ignore"):
        assert same_bits(grad, wide_grad.astype(x.dtype))


@pytest.mark.parametrize("upstream", [65504.0, 1.7])
def test_rounding_before_the_upstream_is_applied_would_be_seen(upstream):
    x = X.astype(np.float16)
    grad = lal_value_and_grad(x, Y, grad_output=upstream)[1]
    rounded_first = (lal_value_and_grad(x, Y)[1].astype(np.float32) * np.float32(upstream)).astype(np.float16)
    assert not same_bits(grad, rounded_first)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_hvp_is_rounded_once(dtype):
    x, v = of_dtype(X, dtype), of_dtype(V, dtype)
    found = lal_hvp(x, Y, v, grad_output=1.7)
    for a, b in zip(found, lal_hvp(x.astype("f4"), Y, v.astype("f4"), grad_output=1.7), strict=True):
        assert same_bits(a, b.astype(x.dtype))
    assert all(map(same_bits, lal_jvp(x, Y, v), lal_jvp(x.astype("f4"), Y, v.astype("f4"))))


@each_engine
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_any_integer_labels_are_used_as_they_are(engine, dtype):
    void = {"int8": 127}.get(dtype, VOID)
    y = np.where(Y == VOID, void, Y).astype(dtype)
    for options in (
        {"ignore_index": void},
        {"ignore_index": (void, 1)},
        {"ignore_index": (void, -100, 2**40)},
    ):
        right = {
            **options,
            "ignore_index": [VOID if i == void else i for i in np.ravel(options["ignore_index"])],
        }
        for a, b in zip(
            lal_value_and_grad(X, y, engine=engine, **options),
            lal_value_and_grad(X, Y, engine=engine, **right),
            strict=True,
        ):
            assert same_bits(a, b)


@each_engine
def test_wide_integers_are_not_cut_to_narrow_ones(engine):
    """2**32 is not label 0, and 255 not -1."""
    y = Y.copy()
    y[0, 1, 1] = 2**32
    with pytest.raises(ValueError, match="4294967296"):
        lal_loss(X, y, engine=engine)
    ell = lal_loss(X, y, engine=engine, check=False, reduction="none")
    assert np.isnan(ell[0, 1, 1])
    with pytest.raises(ValueError, match="255"):
        lal_loss(X, Y.astype(np.uint8), engine=engine, ignore_index=-1)


# ---- libraries ------------------------------------------------------------------------------------


@each_option
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_library_of_the_array_api_gets_back_its_own_arrays(options, dtype):
    """array-api-strict has nothing but the standard: the values are NumPy's, the arrays its own."""
    xp = array_api_strict
    x, v = X.astype(dtype), V.astype(dtype)
    for name, call in CALLS.items():
        right = call(x, Y, v, pixel_weight=OMEGA, engine="array", **options)
        found = call(*map(xp.asarray, (x, Y, v)), pixel_weight=xp.asarray(OMEGA), **options)
        for a, b in zip(found, right, strict=True):
            assert isinstance(a, type(xp.asarray(0.0))), name
            assert a.dtype == getattr(xp, b.dtype.name)
            assert a.shape == b.shape
            assert same_bits(np.from_dlpack(a), b)


def test_numpy_gets_back_a_0d_value():
    for call in (lal_loss(X, Y), lal_value_and_grad(X, Y)[0], *lal_jvp(X, Y, V)):
        assert np.ndim(call) == 0
        assert isinstance(call, np.float64)


def test_other_libraries_labels_or_weights_are_refused_by_name():
    strict = array_api_strict.asarray
    with pytest.raises(
        TypeError, match=r"logits and labels .* one library.*numpy .*array_api_strict.*convert"
    ):
        lal_loss(X, strict(Y))
    with pytest.raises(TypeError, match="pixel_weight"):
        lal_loss(X, Y, pixel_weight=strict(OMEGA))
    with pytest.raises(TypeError, match="tangent"):
        lal_jvp(X, Y, strict(V))
    with pytest.raises(TypeError, match="grad_output"):
        lal_value_and_grad(X, Y, reduction="none", grad_output=strict(OMEGA))


@each_engine
def test_the_engines_have_one_signature(engine):
    room = {"numba": "loops", "cuda": "kernels"}.get(engine, engine)
    module = importlib.import_module(f"lalref.engines.{room}")
    forward, backward = (inspect.signature(f) for f in (module.window_losses, module.window_losses_vjp))
    assert list(forward.parameters) == ["logits", "labels", "valid", "options"]
    assert list(backward.parameters) == ["logits", "labels", "valid", "options", "g"]
