"""The array engine against softmax cross-entropy, the definition, truth, and what calculus says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from samples import (
    INF,
    MOST_AXES,
    NAN,
    OMEGA,
    V,
    X,
    Y,
    each_dtype,
    each_engine,
    each_option,
    each_space,
    of_dtype,
    problems,
    same_bits,
    upstream_for,
)
from scipy.special import log_softmax

from lalref import LocallyAdaptiveLoss, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad, minkowski, truth
from lalref.engines import array, pooling
from lalref.oracle import golden
from lalref.oracle.cases import CASES
from lalref.oracle.inputs import VOID, certain, eighths, scattered
from lalref.oracle.units import error_unit
from lalref.oracle.verify import in_units

EPS = float(np.finfo(float).eps)


def floats(balls):
    """The balls' midpoints as doubles."""
    return np.asarray(truth.doubles(balls)[0][0])


# ---- kernel_size=1, p=1 is softmax cross-entropy ---------------------------------------------------


@each_engine
@pytest.mark.parametrize("S", [(), (4,), (3, 4), (2, 3, 2), (2, 1, 3, 2), (1, 2, 2, 1, 3)], ids=len)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weight", [None, (0.5, 2.0, 0.0, 1.25)])
@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("ignore_index", [VOID, 0, -100, None])
def test_kernel_1_and_p_1_is_softmax_cross_entropy(engine, S, reduction, weight, alpha, ignore_index):
    if len(S) > MOST_AXES[engine]:
        pytest.skip(f"{engine} takes up to {MOST_AXES[engine]} spatial axes, and says so: test_every_rank")
    C = 4
    void = VOID if ignore_index is None else ignore_index
    x, y = eighths((3, C, *S), 11), scattered((3, *S), 12, C, None if ignore_index is None else void)
    log_P = np.moveaxis(log_softmax(x, axis=1), 1, -1)  # (N, *S, C)
    omega = np.where(y == ignore_index, 0, 1.0 if weight is None else np.take(weight, y, mode="clip"))
    t = (1 - alpha) * np.eye(C)[np.clip(y, 0, C - 1)] + alpha / C
    total = {"none": 1.0, "sum": 1.0, "mean": omega.sum()}[reduction]
    ell = -(t * log_P).sum(-1)
    expected = omega * ell if reduction == "none" else (omega * ell).sum() / total
    slope = np.moveaxis(omega[..., None] / total * (np.exp(log_P) - t), -1, 1)
    value, grad = lal_value_and_grad(
        x, y, kernel_size=1, p=1, reduction=reduction, class_weight=weight, label_smoothing=alpha,
        ignore_index=ignore_index, engine=engine,
    )  # fmt: skip
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(grad, slope, rtol=1e-12, atol=1e-16)


# ---- the definition and truth ---------------------------------------------------------------------


@each_engine
@settings(max_examples=150)
@given(problem=problems())
def test_the_value_is_the_definitions(engine, problem):
    x, y, options = problem
    value = lal_loss(x, y, engine=engine, **options)
    right = lal_loss(x, y, engine="definition", **options)
    np.testing.assert_allclose(value, right, rtol=1e-13, atol=1e-14)  # ell is the textbook's to 1e-14


@each_engine
@each_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_value_and_every_gradient_entry_are_within_two_units_of_truth(engine, dtype, case):
    if case.labels.ndim - 1 > MOST_AXES[engine]:
        pytest.skip(f"{engine} takes up to {MOST_AXES[engine]} spatial axes")
    right = golden.load()[case.name]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    value, grad = lal_value_and_grad(
        of_dtype(case.given_logits, dtype), case.labels, engine=engine, **case.arguments
    )
    assert in_units(value.astype(float), right.value, unit.value).max(initial=0) <= 2
    assert in_units(grad.astype(float), right.grad, unit.grad).max(initial=0) <= 2


@each_option
@pytest.mark.parametrize("grad_output", [1.0, -1.75])
def test_jvp_and_hvp_are_truths(options, grad_output):
    """To rounding, next to the largest entry: logits and tangents are below 4."""
    options = {**options, "pixel_weight": OMEGA}
    exact = truth.hvp(X, Y, V, grad_output=grad_output, **options)
    value, value_dot = lal_jvp(X, Y, V, **options)
    grad, grad_dot = lal_hvp(X, Y, V, grad_output=grad_output, **options)
    for found, balls in (
        (value, exact.value), (value_dot, exact.value_dot), (grad, exact.grad), (grad_dot, exact.grad_dot),
    ):  # fmt: skip
        right = floats(balls)
        np.testing.assert_allclose(found, right, rtol=0, atol=100 * EPS * max(1e-3, abs(right).max()))
    assert same_bits(value, lal_loss(X, Y, engine="array", **options))
    again = lal_value_and_grad(X, Y, grad_output=grad_output, engine="array", **options)
    assert same_bits(grad, again[1])


def test_jvp_and_hvp_of_a_map_with_an_upstream_of_its_own():
    upstream = eighths(Y.shape, 6)
    for space in ("logits", "probabilities"):
        options = {"space": space, "reduction": "none", "grad_output": upstream, "kernel_size": 3}
        exact = truth.hvp(X, Y, V, **options)
        grad, grad_dot = lal_hvp(X, Y, V, **options)
        np.testing.assert_allclose(grad, floats(exact.grad), rtol=0, atol=1e-13)
        np.testing.assert_allclose(grad_dot, floats(exact.grad_dot), rtol=0, atol=1e-13)


# ---- what calculus says ---------------------------------------------------------------------------


def moves(x, y, options, *tangents):
    """What a product with the gradient is made of: shares times what each tangent can move an ell by."""
    keep = {k: v for k, v in options.items() if k != "pixel_weight"}
    share = LocallyAdaptiveLoss(**keep).inspect(x, y, pixel_weight=options["pixel_weight"]).share
    return abs(share).sum() * math.prod(2 * abs(v).max(initial=0) for v in tangents) + 1e-300


@settings(max_examples=150)
@given(problem=problems())
def test_the_jvp_is_the_gradients_inner_product_with_the_tangent(problem):
    x, y, options = problem
    v = eighths(x.shape, 13)
    value_dot = lal_jvp(x, y, v, **options)[1]
    up = upstream_for(options, value_dot.shape)
    grad = lal_value_and_grad(x, y, grad_output=up, **options)[1]
    tolerance = 200 * EPS * moves(x, y, options, v) * max(1, np.abs(up).max(initial=0))
    assert abs((grad * v).sum() - (value_dot * up).sum()) <= tolerance


@settings(max_examples=150)
@given(problem=problems())
def test_the_hessian_is_symmetric(problem):
    x, y, options = problem
    u, v = eighths(x.shape, 14), eighths(x.shape, 15)
    grid = lal_loss(x, y, **options).shape
    up = upstream_for(options, grid)
    Hu, Hv = (lal_hvp(x, y, w, grad_output=up, **options)[1] for w in (u, v))
    p = 1 if options["p"] == INF else options["p"]
    tolerance = 2000 * EPS * p * moves(x, y, options, u, v) * max(1, np.abs(up).max(initial=0))
    assert abs((u * Hv).sum() - (v * Hu).sum()) <= tolerance


@settings(max_examples=150)
@given(problem=problems())
def test_pooling_is_its_own_adjoint(problem):
    """⟨A u, v⟩ = ⟨u, A* v⟩; with a stride, A* lays v on the full grid first."""
    u, y, options = problem
    options.pop("pixel_weight")
    options = LocallyAdaptiveLoss(**options)
    y = np.where(np.isin(y, options.ignored_labels), -1, y).astype(np.int32)
    Au = pooling.pool(u, y, options)
    v = eighths(Au.shape, 16)
    adjoint = pooling.pool(pooling.lay(v, y, options), y, options, stride=False)
    assert adjoint.shape == u.shape
    terms = (abs(pooling.pool(abs(u), y, options)) * abs(v)).sum()
    assert abs((Au * v).sum() - (u * adjoint).sum()) <= 100 * EPS * terms


@each_engine
def test_a_stride_beyond_the_image_leaves_one_window_whatever_its_length(engine):
    for stride in (5, 10**9, 10**20):  # laid out in full, the second would not fit into any memory
        grad = lal_value_and_grad(X, Y, stride=stride, engine=engine)[1]
        assert same_bits(grad, lal_value_and_grad(X, Y, stride=99, engine=engine)[1])


LAY = pooling.lay
WRONG_ADJOINTS = {
    "each entry repeated": lambda v, y, options: np.repeat(np.repeat(v, 2, 2), 2, 3)[:, :, :5, :4],
    "one pixel off": lambda v, y, options: np.roll(LAY(v, y, options), 1, 3),
    "in the wrong order": lambda v, y, options: LAY(v[..., ::-1], y, options),
}


@pytest.mark.parametrize("wrong", WRONG_ADJOINTS.values(), ids=WRONG_ADJOINTS.keys())
def test_another_backward_of_pooling_would_be_seen(wrong, monkeypatch):
    dot_test = test_pooling_is_its_own_adjoint.hypothesis.inner_test
    options = {"stride": 2, "kernel_size": 3}
    dot_test((X, Y, {**options, "pixel_weight": None}))
    monkeypatch.setattr(pooling, "lay", wrong)
    with pytest.raises(AssertionError):
        dot_test((X, Y, {**options, "pixel_weight": None}))


# ---- nearly perfect predictions -------------------------------------------------------------------

SURE_Y = scattered((2, 4, 4), 21, 3, VOID)
SURE_X = certain(np.where(SURE_Y == VOID, 0, SURE_Y), 3, 22, 16, 66)
AHEAD = np.moveaxis(np.eye(3)[np.where(SURE_Y == VOID, 0, SURE_Y)], -1, 1)  # raises every target
TANGENTS = {"the targets": AHEAD, "anywhere": eighths(SURE_X.shape, 23)}


def far_off(found, balls, dtype, scale=None, flushed=False):
    """The largest error in eps (1 + max |logit|) of the right number, or of `scale` where that is larger.

    `flushed`: a subnormal number is 0 wherever it arises, as CuPy has float32 compiled.
    """
    info, found = np.finfo(dtype), np.asarray(found, float)
    right = truth.doubles(balls)[0]
    size = abs(right[0]) if scale is None else np.maximum(abs(right[0]), scale)
    allowed = float(info.eps) * (1 + abs(SURE_X).max()) * size
    # below the normal range eps no longer holds: numbers lie smallest_subnormal apart, 25 in a window
    allowed += np.where(size < 64 * float(info.tiny), 25 * float(info.smallest_subnormal), 0)
    if flushed:  # each of the 25 may be one that was
        allowed += 25 * float(info.tiny)
    error = abs((found - right[0]) - right[1])
    return np.max(error / np.where(allowed > 0, allowed, 1), initial=0)


@each_engine
@each_space
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1, 2.5, 5, INF])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_tiny_losses_keep_their_relative_accuracy(engine, space, dtype, p, reduction, kernel_size):
    """Value and every gradient entry within 8 eps (1 + max |logit|), relatively."""
    options = {"space": space, "p": p, "reduction": reduction, "kernel_size": kernel_size}
    exact = truth.value_and_grad(SURE_X, SURE_Y, **options)
    value, grad = lal_value_and_grad(SURE_X.astype(dtype), SURE_Y, engine=engine, **options)
    flushed = engine == "cuda" and dtype == "float32"
    assert far_off(value, exact.value, dtype) <= 8
    assert far_off(grad, exact.grad, dtype, flushed=flushed) <= 8


@each_space
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1, 2.5, 5, INF])
@pytest.mark.parametrize("tangent", TANGENTS.values(), ids=TANGENTS.keys())
def test_tiny_losses_keep_their_relative_accuracy_in_jvp_and_hvp(space, dtype, p, tangent):
    """Where the terms of a derivative cancel, next to the gradient times the tangent."""
    x, v, options = SURE_X.astype(dtype), tangent.astype(dtype), {"space": space, "p": p}
    exact = truth.hvp(SURE_X, SURE_Y, tangent, **options)
    slope, most = abs(floats(exact.grad)), abs(tangent).max()
    cancels = tangent is not AHEAD
    found = lal_jvp(x, SURE_Y, v, **options)
    assert far_off(found[0], exact.value, dtype) <= 8
    assert far_off(found[1], exact.value_dot, dtype, (slope * abs(tangent)).sum() if cancels else None) <= 8
    found = lal_hvp(x, SURE_Y, v, **options)
    assert far_off(found[0], exact.grad, dtype) <= 8
    # with p > 1 the shares' own movement, ell_dot / ell - L_dot / L, cancels
    scale = slope * most if cancels or 1 < p < INF else None
    assert far_off(found[1], exact.grad_dot, dtype, scale) <= 8


def test_the_losses_are_as_tiny_as_is_said():
    for space in ("logits", "probabilities"):
        for kernel_size in (1, 3, 5):
            ell = lal_loss(SURE_X, SURE_Y, space=space, kernel_size=kernel_size, reduction="none")
            ell = ell[SURE_Y != VOID]
            assert 1e-30 < ell.min() < 1e-12
            assert ell.max() < 1e-6


@each_space
def test_the_textbook_algorithm_would_be_seen(space):
    """Differences from 1 have lost everything by 1e-17: the mistake that tiny losses must catch."""
    options = {"space": space, "reduction": "none", "kernel_size": 3}
    exact = truth.value_and_grad(SURE_X, SURE_Y, **options)
    textbook = lal_loss(SURE_X, SURE_Y, engine="definition", **options)
    assert far_off(textbook, exact.value, "float64") > 1000


# ---- what inspect shows ---------------------------------------------------------------------------


@each_option
def test_the_maps_behind_the_value(options):
    loss = LocallyAdaptiveLoss(**options)
    maps, exact = loss.inspect(X, Y), truth.stages(X, Y, **options)
    np.testing.assert_array_equal(maps.group_size, exact.group_size)
    for found, balls in ((maps.divisor, exact.D), (maps.window_loss, exact.ell)):
        np.testing.assert_allclose(found, floats(balls), rtol=1e-13, atol=1e-15)
    if loss.space == "logits":
        np.testing.assert_allclose(maps.merged, floats(exact.merged), rtol=1e-12, atol=1e-14)
    else:
        valid = maps.group_size > 0
        y = Y[(slice(None), *(slice(None, None, s) for s in loss.strides(2)))]
        of_target = np.take_along_axis(maps.merged, np.where(valid, y, 0)[:, None], 1)[:, 0]
        np.testing.assert_allclose(of_target[valid], floats(exact.merged)[valid], rtol=1e-13)
    value = loss(X, Y)
    if loss.reduction == "none":
        np.testing.assert_allclose(maps.share * maps.window_loss, value, rtol=1e-15)
    else:  # L is homogeneous of degree 1 in ell
        np.testing.assert_allclose((maps.share * maps.window_loss).sum(), value, rtol=1e-14)


def test_maps_are_compared_as_objects_since_arrays_have_no_one_answer():
    maps = LocallyAdaptiveLoss().inspect(X, Y)
    assert maps in [maps]
    assert maps != LocallyAdaptiveLoss().inspect(X, Y)


def test_the_merged_distribution_adds_up_to_one():
    maps = LocallyAdaptiveLoss(space="probabilities").inspect(X, Y)
    np.testing.assert_allclose(maps.merged.sum(1), maps.group_size > 0, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_at_infinity_reach_16_eps_down_and_share_in_proportion_to_their_weights(dtype):
    eps = np.finfo(dtype).eps
    ell = np.array([[1.0, 1 - 15 * eps, 1 - 17 * eps, 0.5]], dtype)
    omega = np.array([[0.5, 1.5, 1.0, 1.0]])
    options = LocallyAdaptiveLoss(p=INF)
    total = minkowski.parts(ell, omega, omega > 0, options)
    assert minkowski.shares(ell, omega, total).tolist() == [[0.25, 0.75, 0, 0]]


def test_the_value_is_not_differentiated_through_a_maximum_that_is_0():
    """All ell = 0: L = 0 and gradient 0, whatever p is."""
    x, y = np.zeros((1, 1, 3, 3)), np.zeros((1, 3, 3), int)
    for p in (1, 1.5, 5, INF):
        assert lal_loss(x, y, p=p) == 0
        assert not lal_value_and_grad(x, y, p=p)[1].any()
        assert not np.any(lal_hvp(x, y, x + 1, p=p))


def test_a_nan_loss_does_not_hide_behind_a_share_of_0():
    x = X.copy()
    x[0, :, 2, 2] = NAN
    g = np.zeros(Y.shape)
    y = np.where(Y == VOID, -1, Y).astype(np.int32)
    grad = array.window_losses_vjp(x, y, y >= 0, LocallyAdaptiveLoss(kernel_size=3), g)
    assert np.isnan(grad[0, :, 2, 2]).all()


def test_ignored_pixels_are_in_no_group_not_even_with_each_other():
    y, options = np.array([[[-1, -1, 0], [-1, 0, 0]]], np.int32), LocallyAdaptiveLoss(kernel_size=3)
    assert pooling.group_size(y, options).tolist() == [[[0, 0, 3], [0, 3, 3]]]
    assert not pooling.pool(np.ones((1, 2, 2, 3)), y, options)[:, :, y[0] < 0].any()
