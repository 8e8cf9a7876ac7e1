"""Truth where it is special: ties, tiny losses, exact zeros, what has no ball, stages, storage."""

import math

import ml_dtypes
import numpy as np
import pytest
from flint import arb, ctx

from lalref import balls, definition, proof, truth

INF, NAN = math.inf, math.nan
BITS = 4000  # of the tests' own balls


@pytest.fixture(autouse=True)
def wide_balls():
    before = ctx.prec, ctx.cap
    ctx.prec = BITS
    yield
    assert (ctx.prec, ctx.cap) == (BITS, before[1])  # truth puts the caller's settings back
    ctx.prec = before[0]


def exactly_zero(entries):
    return all(e.is_zero() for e in np.ravel(entries))


# ---- tiny losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("margin", [0.5, 20.0, 70.0, 1000.0, 2000.0])
def test_precision_rises_until_a_tiny_loss_is_proven(margin, space):
    x = [[margin / 2, -margin / 2]]
    found = truth.hvp(x, [0], [[1.0, 0.25]], space=space)
    t = (-arb(margin)).exp()
    loss, p = (1 + t).log(), t / (1 + t)  # log(1 + e^-m) and the other class's probability
    for ball, answer in [
        (found.value, loss),
        (found.grad[0, 0], -p),
        (found.grad[0, 1], p),
        (found.value_dot, -p * 3 / 4),
        (found.grad_dot[0, 0], p * (1 - p) * 3 / 4),
        (found.grad_dot[0, 1], -p * (1 - p) * 3 / 4),
    ]:
        assert ball.overlaps(answer)
        assert ball.rad() * 2**120 <= abs(answer)


def test_one_sure_window_among_others():
    """The neighbour's loss of e^-2000 is 870 orders below the largest, and is proven all the same."""
    x = np.array([[[0.0, 1000.0], [0.0, -1000.0]]])  # (1, 2, 2)
    grad = truth.value_and_grad(x, [[0, 0]], kernel_size=1, p=1).grad
    answer = -(-arb(2000)).exp() / (1 + (-arb(2000)).exp()) / 2
    assert grad[0, 0, 1].overlaps(answer)
    assert grad[0, 0, 1].rad() * 2**120 <= abs(answer)


def test_too_little_precision_is_said_not_hidden(monkeypatch):
    monkeypatch.setattr(proof, "BITS", (256,))
    assert truth.value([[1.0, 0.0]], [0]).value.rad() < 1e-40
    with pytest.raises(ArithmeticError, match="not proven with 256 bits"):
        truth.value([[500.0, -500.0]], [0])


def test_a_true_zero_by_cancellation_is_proven_far_below_any_float():
    """Smoothing 1 with equal logits: the gradient is 0 without any of its terms being so."""
    found = truth.value_and_grad(np.zeros((1, 2, 2)), [[0, 1]], label_smoothing=1.0)
    entries = found.grad.ravel()
    assert all(e.contains(0) and e.rad() < arb(2) ** -1194 for e in entries)
    assert truth.jvp([[0.5, 1.5]], [0], [[1.0, 1.0]]).value_dot.abs_upper() < arb(2) ** -1194


# ---- ties at p = inf, equation (9) ------------------------------------------------------------------


def tie(step, dtype=np.float64):
    """Three pixels of one class; the first two have the largest loss, one of them by a step of its logit."""
    x = np.array([[[0.0, 0.0, 3.0], [1.0, 1.0 + step, 0.0]]], dtype)  # (1, 2, 3)
    weights = np.array([[3.0, 1.0, 9.0]])
    return truth.hvp(
        x,
        [[0, 0, 0]],
        np.ones((1, 2, 3))
        * [
            [[1.0]],
        ],
        kernel_size=1,
        p=INF,
        pixel_weight=weights,
    )


def test_a_tie_shares_the_gradient_by_omega_and_says_so():
    found = tie(0.0)
    p = 1 / (1 + (-arb(1)).exp())
    assert found.value.overlaps((1 + arb(1).exp()).log())
    assert found.tied == ((0, 0), (0, 1))
    assert found.grad[0, 1, 0].overlaps(p * 3 / 4)
    assert found.grad[0, 1, 1].overlaps(p / 4)
    assert exactly_zero(found.grad[0, :, 2])


@pytest.mark.parametrize(
    ("step", "dtype", "tied"),
    [
        (2.0**-52, np.float64, True),  # within 16 eps of the working dtype
        (2.0**-44, np.float64, False),
        (2.0**-22, np.float32, True),
        (2.0**-22, np.float64, False),
        (2.0**-14, np.float32, False),
    ],
)
def test_ties_reach_as_far_as_16_eps(step, dtype, tied):
    found = tie(step, dtype)
    assert (found.tied != ()) is tied
    assert found.grad[0, 1, 0].is_zero() is not tied
    assert found.value.overlaps((1 + arb(1 + step).exp()).log())


def test_no_tie_is_claimed_for_other_p():
    assert truth.value_and_grad(np.zeros((1, 2, 3)), [[0, 0, 0]], p=5).tied == ()


# ---- exact zeros, and what is never read ------------------------------------------------------------

X = np.array([[[0.5, -1.0, 2.0, 0.25], [1.0, 0.0, -0.5, 1.5], [-1.0, 0.75, 0.0, 0.5]]])  # (1, 3, 4)
Y = np.array([[0, 0, 255, 1]])
SPACES = pytest.mark.parametrize("space", ["logits", "probabilities"])


@SPACES
def test_ignored_pixels_are_not_read_and_have_gradient_0(space):
    x = X.copy()
    x[..., 2] = [NAN, INF, -INF]
    weight = np.array([[1.0, 2.0, NAN, 1.0]])
    v = np.where(np.isfinite(x), 0.5, NAN)
    found, clean = (
        truth.hvp(a, Y, b, space=space, pixel_weight=weight) for a, b in ((x, v), (X, np.full_like(X, 0.5)))
    )
    assert exactly_zero(found.grad[..., 2])
    assert exactly_zero(found.grad_dot[..., 2])
    same = zip([found.value, *found.grad.ravel()], [clean.value, *clean.grad.ravel()], strict=True)
    assert all(a.overlaps(b) for a, b in same)


@SPACES
def test_a_pixel_of_weight_0_keeps_its_place_in_other_groups(space):
    found = truth.value_and_grad(X, Y, space=space, pixel_weight=np.array([[1.0, 0.0, 1.0, 0.0]]))
    assert all(g.rad() < abs(g) for g in found.grad[0, :, :2].ravel())
    assert exactly_zero(found.grad[0, :, 2:])


@SPACES
def test_excluded_classes_have_gradient_0(space):
    x = X.copy()
    x[0, 2, :2] = -INF
    found = truth.hvp(x, Y, X, space=space)
    assert exactly_zero(found.grad[0, 2, :2])
    assert exactly_zero(found.grad_dot[0, 2, :2])
    two = truth.hvp(X[:, :2, :2], Y[:, :2], X[:, :2, :2], space=space, p=1, reduction="sum")
    all_of_it = truth.hvp(x[..., :2], Y[:, :2], X[..., :2], space=space, p=1, reduction="sum")
    assert two.value.overlaps(all_of_it.value)
    assert all(map(arb.overlaps, two.grad_dot.ravel(), all_of_it.grad_dot[:, :2].ravel()))


def test_a_pixel_that_is_certain_either_way_moves_nothing_in_probability_space():
    for excluded in ([0], [1, 2]):
        x = X.copy()
        x[0, excluded, 1] = -INF
        found = truth.hvp(x, Y, X, space="probabilities")
        assert found.value.rad() < 1e-30
        assert exactly_zero(found.grad[0, :, 1])
        assert exactly_zero(found.grad_dot[0, :, 1])
        assert not exactly_zero(found.grad_dot[0, :, 0])


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        (X[:, :1], [[0, 0, 0, 0]], {}),  # C = 1
        (X[:, :1], [[0, 0, 0, 0]], {"p": INF, "label_smoothing": 0.5}),
        (X[:, :1], [[0, 0, 0, 0]], {"space": "probabilities"}),
        (X[:, :1], [[0, 0, 0, 0]], {"space": "probabilities", "normalize": "count", "sigma": None}),
        (np.where(np.arange(3)[:, None] == 0, X, -INF), [[0, 0, 0, 0]], {}),  # all others excluded
        (X, [[255] * 4], {}),  # all ignored
        (X[:0], np.zeros((0, 4), int), {}),
    ],
)
def test_where_every_loss_is_0_so_is_all_else(x, y, options):
    found = truth.hvp(x, y, np.ones_like(x), **options)
    assert exactly_zero([found.value, found.value_dot, *found.grad.ravel(), *found.grad_dot.ravel()])


def test_one_class_divided_by_the_count_is_a_constant():
    found = truth.hvp(X[:, :1], [[0] * 4], X[:, :1], space="probabilities", normalize="count")
    assert found.value > 0.5
    assert exactly_zero([found.value_dot, *found.grad.ravel(), *found.grad_dot.ravel()])


def test_a_window_without_loss_beside_one_with():
    x = np.array([[[0.0, 1.0], [-INF, 2.0]]])  # class 1 is excluded at the first pixel
    found = truth.value_and_grad(x, [[0, 0]], kernel_size=1, p=2)
    assert found.value.overlaps((1 + arb(1).exp()).log() / arb(2).sqrt())
    assert exactly_zero(found.grad[..., 0])


def test_no_valid_window():
    none = {"ignore_index": (0, 1, 255)}
    assert truth.value(X, Y, **none, empty="nan").value.is_nan()
    assert exactly_zero(truth.value_and_grad(X, Y, **none, empty="nan").grad)
    assert exactly_zero(truth.value(X, Y, **none, reduction="none").value)
    with pytest.raises(ValueError, match="no valid window"):
        truth.value(X, Y, **none, empty="raise")


# ---- what has no ball -----------------------------------------------------------------------------


@SPACES
@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({(0, 1, 0): NAN}, {}, "logit nan at"),
        ({(0, 1, 0): INF}, {}, "logit inf at"),
        ({(0, 0, 0): -INF, (0, 0, 1): -INF}, {}, "reads -inf"),
        ({(0, c, 3): -INF for c in range(3)}, {}, "reads -inf"),
        ({}, {"ignore_index": 1}, "label 255, no class of 3"),
        ({}, {"class_weight": [1.0, INF, 1.0]}, "has the weight"),
    ],
)
def test_what_has_no_ball_is_refused(changed, options, message, space):
    x = X.copy()
    for index, value in changed.items():
        x[index] = value
    with pytest.raises(ValueError, match=message):
        truth.value(x, Y, space=space, **options)


def test_other_refusals():
    with pytest.raises(ValueError, match="tangent nan"):
        truth.jvp(X, Y, np.full_like(X, NAN))
    with pytest.raises(ValueError, match="reads -inf"):
        truth.value([[0.0, -INF]], [0], label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"labels of shape \(1, 3\)"):
        truth.value(X, Y[:, :3])
    with pytest.raises(TypeError, match=r"longdouble|float128"):
        truth.value(X.astype(np.longdouble), Y)
    with pytest.raises(TypeError, match="complex128"):
        truth.value(X.astype(complex), Y)
    with pytest.raises(TypeError, match="kernel"):
        truth.value(X, Y, kernel=3)


# ---- dtypes, layouts, upstream gradients, stages ----------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_inputs_are_exact_in_every_dtype(dtype):
    a, b = truth.value_and_grad(X, Y), truth.value_and_grad(X.astype(dtype), Y)
    assert a.value == b.value or (a.value.mid() == b.value.mid() and a.value.rad() == b.value.rad())
    assert all(p.mid() == q.mid() for p, q in zip(a.grad.ravel(), b.grad.ravel(), strict=True))


def test_class_axis_last_and_upstream_gradient():
    base = truth.hvp(X, Y, X)
    last = truth.hvp(np.moveaxis(X, 1, -1), Y, np.moveaxis(X, 1, -1), axis=-1, grad_output=-0.5)
    assert last.grad.shape == (1, 4, 3)
    assert all(map(arb.overlaps, np.moveaxis(last.grad, -1, 1).ravel(), (base.grad * arb(-0.5)).ravel()))
    assert all(
        map(arb.overlaps, np.moveaxis(last.grad_dot, -1, 1).ravel(), (base.grad_dot * arb(-0.5)).ravel())
    )
    assert last.value.overlaps(base.value)  # grad_output is no matter of the value


def test_upstream_map_is_not_read_where_no_window_is():
    up = np.array([[1.0, 2.0, NAN, -1.0]])
    found = truth.value_and_grad(X, Y, reduction="none", grad_output=up)
    assert all(g.is_finite() for g in found.grad.ravel())
    assert found.value.shape == (1, 4)
    assert found.value[0, 2].is_zero()


@pytest.mark.parametrize("normalize", ["weights", "count"])
def test_stages_are_those_of_the_definition(normalize):
    options = {"kernel_size": 3, "stride": (3,), "normalize": normalize}
    found = truth.stages(X, Y, **options)
    w = (-arb(1) / 2).exp()
    D = 1 + w if normalize == "weights" else arb(2)
    assert found.group_size.tolist() == [[2, 1]]
    assert found.D[0, 0].overlaps(D)
    assert found.merged.shape == (1, 3, 2)
    for c in range(3):
        assert found.merged[0, c, 0].overlaps((arb(X[0, c, 0]) + w * arb(X[0, c, 1])) / D)
    ells = definition.loss(X, Y, **options, reduction="none")
    assert found.ell.astype(float) == pytest.approx(np.array(ells), rel=1e-14)

    merged = truth.stages(X, Y, **options, space="probabilities").merged
    P = np.exp(-np.array(definition.loss(X, Y, **options, space="probabilities", reduction="none")))
    assert merged.astype(float) == pytest.approx(P, rel=1e-14)


def test_stages_of_an_excluded_class_and_of_an_ignored_pixel():
    x = X.copy()
    x[0, 2, 0] = -INF
    found = truth.stages(x, Y)
    assert float(found.merged[0, 2, 1]) == -INF
    assert found.group_size[0, 2] == 0
    assert exactly_zero([found.D[0, 2], found.ell[0, 2], *found.merged[0, :, 2]])


# ---- storage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stored_doubles_hold_the_ball(n):
    numbers = np.array(
        [arb(1) / 3, -arb(2).sqrt() * 10**30, arb(0), (-arb(800)).exp(), arb(0.5), arb(3, 1e-20)], object
    )
    parts, radius = truth.doubles(numbers, n)
    assert parts.shape == (n, 6)
    assert parts[0].tolist() == [1 / 3, -1.41421356237309504880168872e30, 0.0, 0.0, 0.5, 3.0]
    for i, ball in enumerate(numbers):
        total = sum((arb(float(part)) for part in parts[:, i]), arb(0))
        assert (ball - total).abs_upper() <= arb(float(radius[i]))
    assert radius[0] < 2.0 ** (1 - 53 * n)
    assert radius[[2, 4]].tolist() == [0, 0]
    assert radius[3] == 5e-324
    assert 1e-20 <= radius[5] < 1.1e-20


def test_a_single_ball_is_stored_as_a_scalar():
    parts, radius = truth.doubles(truth.value([[1.0, 0.0]], [0]).value, 3)
    assert parts.shape == (3,)
    assert radius < 2.0**-120  # three doubles keep what is proven


def test_a_run_reads_each_pixel_only_where_a_group_does():
    with proof.arithmetic(256, 2):
        run = balls.Run(balls.Problem(X, Y, {"kernel_size": 3}))
    assert {key: len(windows) for key, windows in run.reach.items()} == {
        (0, (0,)): 2,
        (0, (1,)): 2,
        (0, (3,)): 1,
    }
