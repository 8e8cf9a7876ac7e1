"""What is promised about values: unchecked labels, nothing to learn, logits of 1000."""

import numpy as np
import pytest
from samples import (
    INF,
    NAN,
    OMEGA,
    OPTIONS,
    X,
    Y,
    each_engine,
    each_option,
    each_space,
    same_bits,
)

from lalref import LocallyAdaptiveLoss, combine, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.oracle.inputs import VOID

# ---- labels that are not checked ------------------------------------------------------------------


@each_engine
@each_option
@pytest.mark.parametrize("label", [3, 7, 1000, -1, -300, 2**31, 2**40 + 1, -(2**40)])
def test_unchecked_a_label_out_of_range_makes_its_windows_nan(engine, options, label):
    """Never a plausible number, and no weight table is read out of range."""
    y, at = Y.copy(), np.zeros(Y.shape, bool)
    y[0, 2, 2], at[0, 2, 2] = label, True
    options = {**options, "engine": engine, "check": False}
    value, grad = lal_value_and_grad(X, y, **options)
    grad = np.moveaxis(grad, 1, -1)
    if options.get("reduction") == "none":
        without = lal_loss(X, np.where(at, VOID, Y), **options)
        on_grid = at[
            (slice(None), *(slice(None, None, s) for s in np.ravel(options.get("stride", 1)) * [1, 1]))
        ]
        assert np.isnan(value[on_grid]).all()
        assert same_bits(value[~on_grid], without[~on_grid])
    else:
        assert np.isnan(value)
    assert np.isnan(grad[0, 2, 2]).all()
    assert np.isfinite(grad[np.isin(Y, options.get("ignore_index", VOID))]).all()
    if options.get("p") == 1:  # nobody else reads it
        assert np.isfinite(grad[~at]).all()


@each_engine
def test_unchecked_labels_that_are_right_give_the_same_bits(engine):
    for options in OPTIONS.values():
        right = lal_value_and_grad(X, Y, engine=engine, **options)
        assert all(map(same_bits, lal_value_and_grad(X, Y, engine=engine, check=False, **options), right))


# ---- nothing to learn -----------------------------------------------------------------------------

EMPTY = {
    "all ignored": (X, np.full_like(Y, VOID), OMEGA),
    "every weight 0": (X, Y, 0 * OMEGA),
    "no image": (X[:0], Y[:0], OMEGA[:0]),
    "no pixel": (X[:, :, :0], Y[:, :0], OMEGA[:, :0]),
    "all ignored and NaN": (NAN * X, np.full_like(Y, VOID), NAN * OMEGA),
}
each_empty = pytest.mark.parametrize(("x", "y", "omega"), EMPTY.values(), ids=EMPTY.keys())


@each_engine
@each_option
@each_empty
def test_without_a_valid_window_the_value_is_0_or_nan_and_the_gradient_0(engine, options, x, y, omega):
    for empty, right in (("zero", 0.0), ("nan", NAN)):
        value, grad = lal_value_and_grad(x, y, pixel_weight=omega, empty=empty, engine=engine, **options)
        right = right if options.get("reduction") != "none" else 0.0
        np.testing.assert_array_equal(value, np.full_like(value, right))
        assert same_bits(abs(grad), np.zeros_like(x))
        np.testing.assert_array_equal(lal_loss(x, y, pixel_weight=omega, empty=empty, **options), value)


@each_option
@each_empty
def test_without_a_valid_window_nothing_moves(options, x, y, omega):
    value, value_dot = lal_jvp(x, y, x, pixel_weight=omega, **options)
    assert not np.any(value)
    assert not np.any(value_dot)
    assert not np.any(lal_hvp(x, y, x, pixel_weight=omega, **options))
    if options.get("reduction") != "none":
        loss = LocallyAdaptiveLoss(**options)
        assert combine(loss.parts(x, y, pixel_weight=omega)).value == 0


@each_engine
@each_option
def test_an_upstream_of_0_gives_a_gradient_of_0(engine, options):
    assert not lal_value_and_grad(X, Y, grad_output=0, engine=engine, **options)[1].any()


# ---- no overflow ----------------------------------------------------------------------------------


@each_engine
@each_space
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1, 5, 40.5, 1e4, INF])
def test_nothing_overflows_for_logits_to_1000(engine, space, dtype, p):
    x = (1000 * np.sign(X)).astype(dtype)
    value, grad = lal_value_and_grad(x, Y, p=p, space=space, engine=engine)
    right = lal_loss(x.astype(float), Y, p=p, space=space, engine="definition")
    np.testing.assert_allclose(value, right, rtol=100 * np.finfo(dtype).eps)
    assert np.isfinite(grad).all()
    assert grad.any()
