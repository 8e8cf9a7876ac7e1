"""What is promised about NaN and infinity: where they are never read, and how far they reach."""

import numpy as np
import pytest
from samples import (
    INF,
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
    same_bits,
)

from lalref import LocallyAdaptiveLoss, combine, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.engines import pooling
from lalref.oracle.inputs import VOID, eighths

BAD = [NAN, INF, -INF]
each_bad = pytest.mark.parametrize("bad", BAD, ids=str)
KERNEL_3 = {"kernel_size": 3}


def ignored(options):
    """Where no class is learnt: labels that `options` ignore."""
    return np.isin(Y, options.get("ignore_index", VOID))


def spoilt(array, where, bad):
    """A copy with `bad` put where `where` (N, *S) says, in every class."""
    array = array.copy()
    (np.moveaxis(array, 1, -1) if array.ndim > where.ndim else array)[where] = bad
    return array


def reached(where, kernel_size=3):
    """Pixels in the group of one of the pixels `where`, worked out pixel by pixel."""
    r, found = kernel_size // 2, np.zeros_like(where)
    for n, i, j in np.argwhere(where):
        box = (n, slice(max(0, i - r), i + r + 1), slice(max(0, j - r), j + r + 1))
        found[box] |= Y[box] == Y[n, i, j]
    return found


# ---- never read -----------------------------------------------------------------------------------


@each_engine
@each_dtype
@each_option
@each_bad
def test_nothing_is_read_at_ignored_pixels_and_their_gradient_is_0(engine, dtype, options, bad):
    out = ignored(options)
    x, omega = of_dtype(X, dtype), OMEGA.copy()
    right = lal_value_and_grad(x, Y, pixel_weight=omega, engine=engine, **options)
    found = lal_value_and_grad(
        spoilt(x, out, bad), Y, pixel_weight=spoilt(omega, out, bad), engine=engine, **options
    )
    assert all(map(same_bits, found, right))
    assert out.any()
    assert not np.moveaxis(found[1], 1, -1)[out].any()


@each_option
@each_bad
def test_tangents_are_not_read_at_ignored_pixels(options, bad):
    out = ignored(options)
    for call in (lal_jvp, lal_hvp):
        right = call(X, Y, V, **options)
        assert all(map(same_bits, call(X, Y, spoilt(V, out, bad), **options), right))
        assert all(map(same_bits, call(spoilt(X, out, bad), Y, spoilt(V, out, bad), **options), right))


@each_engine
@each_option
@each_bad
def test_upstream_is_not_read_where_no_window_is(engine, options, bad):
    """Ignored, of class weight 0, or of pixel weight 0."""
    options = {**options, "reduction": "none", "stride": 1, "engine": engine}
    out = ignored(options) | (OMEGA == 0) | (np.isin(Y, 0) & (options.get("class_weight") == (0.0, 1.0, 3.0)))
    upstream = eighths(Y.shape, 5)
    right = lal_value_and_grad(X, Y, pixel_weight=OMEGA, grad_output=upstream, **options)
    found = lal_value_and_grad(X, Y, pixel_weight=OMEGA, grad_output=spoilt(upstream, out, bad), **options)
    assert all(map(same_bits, found, right))
    if engine == "array":
        right = lal_hvp(X, Y, V, pixel_weight=OMEGA, grad_output=upstream, **options)
        found = lal_hvp(X, Y, V, pixel_weight=OMEGA, grad_output=spoilt(upstream, out, bad), **options)
        assert all(map(same_bits, found, right))


def test_a_mask_that_multiplies_would_be_seen(monkeypatch):
    """0 times NaN is NaN: the mistake that the tests of what is never read must catch."""
    neighbours = pooling.neighbours

    def multiplied(u, labels, options, *, stride=True, minus=0.0):
        pairs = neighbours(labels, u, options, stride=stride)
        return sum(w * member[:, None] * (u_q - minus) for w, _, member, u_q in pairs)

    assert np.allclose(multiplied(X, Y, LocallyAdaptiveLoss()), pooling.pool(X, Y, LocallyAdaptiveLoss()))
    monkeypatch.setattr(pooling, "pool", multiplied)
    with pytest.raises(AssertionError):
        test_nothing_is_read_at_ignored_pixels_and_their_gradient_is_0("array", "float64", {}, NAN)


@each_engine
@each_option
@each_bad
def test_a_pixel_that_only_weightless_windows_read_is_not_read(engine, options, bad):
    """Windows of weight 0 take no part in anything, even if they are NaN."""
    options = {**options, "engine": engine, "kernel_size": 3}
    at = np.zeros(Y.shape, bool)
    at[1, 2, 3] = True
    omega = np.where(reached(at), 0, OMEGA)
    right = lal_value_and_grad(X, Y, pixel_weight=omega, **options)
    found = lal_value_and_grad(spoilt(X, at, bad), Y, pixel_weight=omega, **options)
    assert all(map(same_bits, found, right))
    assert not found[1][1, :, 2, 3].any()
    if engine == "array":
        for call in (lal_jvp, lal_hvp):
            right = call(X, Y, V, pixel_weight=omega, **options)
            found = call(spoilt(X, at, bad), Y, spoilt(V, at, bad), pixel_weight=omega, **options)
            assert all(map(same_bits, found, right))


@each_engine
@each_space
def test_a_pixel_of_weight_0_is_still_its_neighbours_neighbour(engine, space):
    y, omega = np.zeros((1, 3), int), np.array([[1.0, 0.0, 0.0]])
    x = eighths((1, 2, 3), 5)
    value, grad = lal_value_and_grad(
        x, y, pixel_weight=omega, kernel_size=3, space=space, sigma=None, engine=engine
    )
    right = lal_loss(
        x[..., :2], y[:, :2], reduction="none", kernel_size=3, space=space, sigma=None, engine=engine
    )[0, 0]
    assert value == right
    assert grad[..., 1].all()
    assert not grad[..., 2].any()


@each_engine
@each_space
@pytest.mark.parametrize("p", [1, 2.5, 5, INF])
@pytest.mark.parametrize("bad", [NAN, -1.0, INF, -INF], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_unchecked_weight_that_is_not_allowed_is_nan_and_never_leaves_its_window_out(
    engine, space, p, bad, reduction
):
    """With check=False, as for labels; one at an ignored pixel is still not read."""
    options = {"space": space, "p": p, "reduction": reduction, "engine": engine, **KERNEL_3}
    at = np.zeros(Y.shape, bool)
    at[0, 2, 2] = True
    assert Y[0, 2, 2] != VOID
    void = spoilt(OMEGA, Y == VOID, bad)
    right = lal_value_and_grad(X, Y, pixel_weight=OMEGA, **options)
    assert all(map(same_bits, lal_value_and_grad(X, Y, pixel_weight=void, check=False, **options), right))
    omega = spoilt(void, at, bad)
    value, grad = lal_value_and_grad(X, Y, pixel_weight=omega, check=False, **options)
    grad = np.moveaxis(grad, 1, -1)
    assert same_bits(lal_loss(X, Y, pixel_weight=omega, check=False, **options), value)
    assert not grad[Y == VOID].any()
    assert np.isnan(grad[reached(at)]).all()
    if reduction == "none":
        assert (np.isnan(value) == at).all()
        return
    assert np.isnan(value)
    loss = LocallyAdaptiveLoss(check=False, **options)
    total = combine(*(loss.parts(X[i : i + 1], Y[i : i + 1], pixel_weight=omega[i : i + 1]) for i in (0, 1)))
    assert np.isnan(total.value)
    if p > 1:
        weighed = OMEGA > 0
        assert np.isnan(grad[reached((weighed & (Y != VOID)) | at)]).all()
    if engine == "array":
        del options["engine"]
        assert np.isnan(lal_jvp(X, Y, V, pixel_weight=omega, check=False, **options)).all()


# ---- how far NaN reaches --------------------------------------------------------------------------


@each_engine
@each_space
@each_bad
def test_a_bad_pixel_reaches_only_its_own_class_in_its_own_windows(engine, space, bad):
    """NaN or inf in a pixel of one class never affects the loss of another class's windows."""
    at = np.zeros(Y.shape, bool)
    at[0, 2, 2] = True
    options = {"space": space, "reduction": "none", "engine": engine, **KERNEL_3}
    right, right_grad = lal_value_and_grad(X, Y, **options)
    ell, grad = lal_value_and_grad(spoilt(X, at, bad), Y, **options)
    hit = reached(at)
    assert np.isnan(ell[hit]).all()
    assert same_bits(ell[~hit], right[~hit])
    beyond = ~reached(hit)
    assert np.isnan(np.moveaxis(grad, 1, -1)[~beyond]).all()
    assert same_bits(np.moveaxis(grad, 1, -1)[beyond], np.moveaxis(right_grad, 1, -1)[beyond])
    assert 1 < hit.sum() < reached(hit).sum() < beyond.sum()


SPOIL = {
    "NaN in one class": lambda x: x[0, 1, 2].__setitem__(2, NAN),
    "+inf in the target": lambda x: x[0, Y[0, 2, 2], 2].__setitem__(2, INF),
    "+inf in another class": lambda x: x[0, (Y[0, 2, 2] + 1) % 3, 2].__setitem__(2, INF),
    "every class -inf": lambda x: x[0, :, 2, 2].__setitem__(slice(None), -INF),
}


@each_engine
@each_space
@each_dtype
@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL.keys())
@pytest.mark.parametrize("p", [1, 2.5, 5, INF])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nan_reaches_as_far_as_the_loss_and_no_farther(engine, space, dtype, spoil, p, reduction):
    """L is NaN, its gradient NaN wherever L reaches: all valid pixels when p > 1; ignored pixels keep 0."""
    x, at = of_dtype(X, dtype), np.zeros(Y.shape, bool)
    spoil(x)
    at[0, 2, 2] = True
    options = {"space": space, "p": p, "reduction": reduction, **KERNEL_3}
    value, grad = lal_value_and_grad(x, Y, engine=engine, **options)
    assert np.isnan(value)
    grad = np.moveaxis(grad, 1, -1)
    nan = reached(reached(at)) if p == 1 else Y != VOID
    assert np.isnan(grad[nan]).all()
    assert np.isfinite(grad[~nan]).all()
    assert not grad[Y == VOID].any()
    if dtype == "float64":
        assert np.isnan(lal_jvp(x, Y, V, **options)).all()
        for a in lal_hvp(x, Y, V, **options):
            assert (np.isnan(a).any(1) == nan).all()


@each_engine
@each_space
def test_a_class_at_minus_infinity_is_as_if_it_were_not_there(engine, space):
    """-inf where the target is 0 is an excluded class: P = 0 and gradient 0."""
    x = np.concatenate([X, np.full((2, 1, 5, 4), -INF)], 1)
    v = np.concatenate([V, V[:, :1]], 1)
    for options in ({}, {"p": 1, "stride": 2}, {"p": INF}, {"reduction": "none"}):
        options = {"space": space, **options}
        for a, b in (
            *zip(
                lal_value_and_grad(x, Y, engine=engine, **options),
                lal_value_and_grad(X, Y, **options),
                strict=True,
            ),
            *zip(lal_jvp(x, Y, v, **options), lal_jvp(X, Y, V, **options), strict=True),
            *zip(lal_hvp(x, Y, v, **options), lal_hvp(X, Y, V, **options), strict=True),
        ):
            if np.shape(a) == x.shape:
                assert not a[:, 3].any()
                a = a[:, :3]
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-16)


@each_engine
@each_dtype
@pytest.mark.parametrize("p", [1, 2.5, INF])
def test_a_target_at_minus_infinity_is_an_infinite_loss(engine, dtype, p):
    x, at = of_dtype(X, dtype), np.zeros(Y.shape, bool)
    at[0, 2, 2] = True
    x[0, Y[0, 2, 2], 2, 2] = -INF
    value, grad = lal_value_and_grad(x, Y, p=p, engine=engine, **KERNEL_3)
    assert value == INF
    nan = reached(reached(at)) if p == 1 else Y != VOID
    assert (np.isnan(np.moveaxis(grad, 1, -1)).all(-1) == nan).all()
    assert not np.moveaxis(grad, 1, -1)[Y == VOID].any()
    ell = lal_loss(x, Y, reduction="none", engine=engine, **KERNEL_3)
    assert (ell[reached(at)] == INF).all()
    assert np.isfinite(ell[~reached(at)]).all()


@each_engine
def test_with_smoothing_every_class_is_a_target(engine):
    x = X.copy()
    x[0, (Y[0, 2, 2] + 1) % 3, 2, 2] = -INF
    assert np.isfinite(lal_loss(x, Y, engine=engine))
    value, grad = lal_value_and_grad(x, Y, label_smoothing=0.1, engine=engine)
    assert value == INF
    assert np.isnan(np.moveaxis(grad, 1, -1)[Y != VOID]).all()


@each_engine
def test_in_probability_space_a_pixel_of_probability_0_is_carried_by_its_neighbours(engine):
    """The merged probability is 0 only where that of every member is."""
    x, y = np.zeros((1, 2, 1, 2)), np.zeros((1, 1, 2), int)
    x[0, 0, 0, 1] = -INF
    options = {"space": "probabilities", "sigma": None, "engine": engine}
    value, grad = lal_value_and_grad(x, y, **options)
    assert value == pytest.approx(np.log(4), rel=1e-15)  # the merged probability is (1/2 + 0) / 2
    assert grad.ravel().tolist() == pytest.approx([-0.5, 0, 0.5, 0], abs=1e-15)
    x[0, 0, 0, 0] = -INF
    value, grad = lal_value_and_grad(x, y, **options)
    assert value == INF
    assert np.isnan(grad).all()


@each_engine
@pytest.mark.parametrize(("dtype", "half"), [("float32", 150), ("float64", 1075)])
def test_a_weight_that_rounds_to_0_reads_nothing_and_the_next_larger_one_does(engine, dtype, half):
    """2^-half is half the smallest number there is: a weight just below it rounds to 0, one above it not."""
    x, y = np.zeros((1, 2, 2), dtype), np.zeros((1, 2), int)
    x[..., 1] = NAN
    for exponent, read in ((half - 0.1, True), (half + 0.1, False)):
        sigma = float(np.sqrt(0.5 / (exponent * np.log(2))))
        for normalize in ("weights", "count"):
            options = {"sigma": sigma, "normalize": normalize, "reduction": "none", "engine": engine}
            assert np.isnan(lal_loss(x, y, **options)[0, 0]) == read
            assert np.isnan(lal_value_and_grad(x, y, **options)[1][0, 0, 0]) == read
