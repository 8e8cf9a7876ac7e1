"""Parts of a batch, however it is split, combine to the whole's value and gradient: equation (19)."""

import dataclasses
import itertools

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import INF, OMEGA, X, Y, each_engine, problems

from lalref import LocallyAdaptiveLoss, combine
from lalref.oracle.inputs import VOID, certain, eighths, scattered

EXPONENTS = [1, 2.5, 5, INF]
N = 5
IMAGES = eighths((N, 3, 4, 3), 1)
LABELS = scattered((N, 4, 3), 2, 3, VOID)
LABELS[3] = VOID  # an image without a valid window
WEIGHT = np.where(LABELS[..., :1] == 0, 0.375, 1.5) * np.ones(LABELS.shape)


def check(loss, x, y, omega, cuts, grad_output=-1.75):
    """Cut the batch at `cuts` and compare with the whole."""
    value, grad = loss.value_and_grad(x, y, pixel_weight=omega, grad_output=grad_output)
    ends = [0, *sorted(cuts), len(x)]
    slices = [slice(a, b) for a, b in itertools.pairwise(ends)]
    weights = [None if omega is None else omega[s] for s in slices]
    total = combine(*(loss.parts(x[s], y[s], pixel_weight=w) for s, w in zip(slices, weights, strict=True)))
    eps = np.finfo(value.dtype).eps
    np.testing.assert_allclose(total.value, value, rtol=4 * eps)
    assert total.value.dtype == value.dtype
    for s, w in zip(slices, weights, strict=True):
        whole, part = loss.value_and_grad(x[s], y[s], pixel_weight=w, grad_output=grad_output, total=total)
        np.testing.assert_array_equal(whole, total.value)
        # a mean over another number of images may be summed in another order
        np.testing.assert_allclose(part, grad[s], rtol=0, atol=50 * eps * abs(grad).max(initial=0))
        assert part.dtype == grad.dtype


@each_engine
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("cuts", [(), (2,), (0, 0), (1, 2, 3, 4), (3, 4), (4, 4, 5)], ids=str)
def test_parts_of_any_split_combine_to_the_whole(engine, p, reduction, dtype, cuts):
    """Among the parts are empty ones and one whose labels are all ignored."""
    for omega in (None, WEIGHT):
        loss = LocallyAdaptiveLoss(p=p, reduction=reduction, engine=engine)
        check(loss, IMAGES.astype(dtype), LABELS, omega, cuts)


@given(problems(reductions=("mean", "sum"), exponents=st.sampled_from([*EXPONENTS, 1.5])), st.data())
def test_parts_combine_whatever_the_options_and_the_split(problem, data):
    x, y, options = problem
    omega = options.pop("pixel_weight")
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=4))
    check(LocallyAdaptiveLoss(**options), x, y, omega, cuts)


@pytest.mark.parametrize("p", EXPONENTS)
def test_parts_of_parts_combine_too(p):
    loss = LocallyAdaptiveLoss(p=p)
    a, b, c, d, e = (loss.parts(IMAGES[i : i + 1], LABELS[i : i + 1]) for i in range(N))
    nested = combine(combine(a, combine(b, d)), combine(c), e)
    np.testing.assert_allclose(nested.value, loss(IMAGES, LABELS), rtol=1e-15)
    assert nested.count == (LABELS != VOID).sum()


@pytest.mark.parametrize("p", EXPONENTS)
def test_tiny_losses_in_one_part_and_large_ones_in_another(p):
    """The powers of either part's losses are nothing beside the other's, or would underflow."""
    y = np.where(LABELS == VOID, 0, LABELS)
    x = certain(y, 3, 3, 16, 66)
    x[:2] = IMAGES[:2]
    check(LocallyAdaptiveLoss(p=p), x, y, None, [2])
    check(LocallyAdaptiveLoss(p=p), x[2:], y[2:], None, [1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ties_at_infinity_are_shared_over_parts_in_proportion_to_their_weights(reduction):
    x = np.concatenate([IMAGES[:2], IMAGES[:1], IMAGES[:1] / 2])
    y = np.concatenate([LABELS[:2], LABELS[:1], LABELS[:1]])
    omega = np.ones(y.shape) * np.array([1.0, 1.0, 3.0, 1.0])[:, None, None]
    loss = LocallyAdaptiveLoss(p=INF, reduction=reduction)
    ell = loss.inspect(x, y).window_loss
    assert ell[0].max() == ell[2].max() == ell.max()
    check(loss, x, y, omega, [1, 2, 3])
    total = combine(
        *(loss.parts(x[i : i + 1], y[i : i + 1], pixel_weight=omega[i : i + 1]) for i in range(4))
    )
    assert total.power_sum == 4
    first, third = (
        loss.value_and_grad(x[i : i + 1], y[i : i + 1], pixel_weight=omega[i : i + 1], total=total)[1]
        for i in (0, 2)
    )
    np.testing.assert_allclose(third, 3 * first, rtol=1e-14)


def test_a_mean_of_the_parts_values_is_another_loss():
    """The mistake that `combine` is there for."""
    loss = LocallyAdaptiveLoss()
    parts = [loss.parts(IMAGES[i : i + 1], LABELS[i : i + 1]) for i in (0, 1)]
    mean = np.mean([part.value for part in parts])
    assert abs(mean - combine(*parts).value) > 1e-3 * mean


@pytest.mark.parametrize("empty", ["zero", "nan"])
@pytest.mark.parametrize("p", EXPONENTS)
def test_nothing_but_empty_parts_is_worth_what_empty_says(empty, p):
    loss = LocallyAdaptiveLoss(empty=empty, p=p)
    parts = [loss.parts(IMAGES[3:4], LABELS[3:4]), loss.parts(IMAGES[:0], LABELS[:0])]
    total = combine(*parts)
    np.testing.assert_array_equal(total.value, 0.0 if empty == "zero" else np.nan)
    value, grad = loss.value_and_grad(IMAGES[3:4], LABELS[3:4], total=total)
    np.testing.assert_array_equal(value, total.value)
    assert not grad.any()
    one = loss.parts(IMAGES[:1], LABELS[:1])
    np.testing.assert_array_equal(combine(*parts, one).value, loss(IMAGES[:1], LABELS[:1]))


@pytest.mark.parametrize("p", EXPONENTS)
def test_nan_in_one_part_is_nan_in_the_whole(p):
    loss, x = LocallyAdaptiveLoss(p=p), IMAGES.copy()
    x[0, :, 0, 0] = np.nan
    assert LABELS[0, 0, 0] != VOID
    total = combine(loss.parts(x[:1], LABELS[:1]), loss.parts(x[1:], LABELS[1:]))
    assert np.isnan(total.value)
    value, grad = loss.value_and_grad(x[1:], LABELS[1:], total=total)
    assert np.isnan(value)
    assert np.isnan(grad).any() == (p > 1)


def test_parts_say_what_they_hold():
    loss = LocallyAdaptiveLoss(p=2.5, kernel_size=3)
    part = loss.parts(X, Y, pixel_weight=OMEGA)
    ell, omega = loss.inspect(X, Y).window_loss, np.where(Y == VOID, 0, OMEGA)
    top = ell[omega > 0].max()
    assert part.maximum == top
    np.testing.assert_allclose(part.power_sum, (omega * (ell / top) ** 2.5).sum(), rtol=1e-14)
    assert part.weight == omega.sum()
    assert part.count == (omega > 0).sum()
    assert part.options == loss
    np.testing.assert_array_equal(part.value, loss(X, Y, pixel_weight=OMEGA))


def test_what_does_not_belong_together_is_refused():
    loss, other = LocallyAdaptiveLoss(), LocallyAdaptiveLoss(p=2)
    part = loss.parts(IMAGES, LABELS)
    with pytest.raises(ValueError, match="at least one"):
        combine()
    with pytest.raises(
        ValueError, match=r"one loss; part 0 is of one with p=5\.0, part 1 of one with p=2\.0$"
    ):
        combine(part, other.parts(IMAGES, LABELS))
    several = LocallyAdaptiveLoss(sigma=None, ignore_index=255)  # said, so it serves more than 255 classes
    with pytest.raises(
        ValueError,
        match=r"one with sigma=1\.0, ignore_index=255 by default, part 1 of one with sigma=None, ignore_index=255$",
    ):
        combine(part, several.parts(IMAGES, LABELS))
    with pytest.raises(ValueError, match=r"float64.*float32"):
        combine(part, loss.parts(IMAGES.astype(np.float32), LABELS))
    with pytest.raises(ValueError, match=r"total=.* this loss, which has p=2\.0; got .* one with p=5\.0$"):
        other.value_and_grad(IMAGES, LABELS, total=part)
    with pytest.raises(ValueError, match=r"total=.*float64.*float32"):
        loss.value_and_grad(IMAGES.astype(np.float32), LABELS, total=part)
    strict = [array_api_strict.asarray(a) for a in (IMAGES, LABELS)]
    with pytest.raises(TypeError, match=r"total=.*numpy.*array_api_strict"):
        loss.value_and_grad(*strict, total=part)
    with pytest.raises(TypeError, match=r"total=.*float"):
        loss.value_and_grad(IMAGES, LABELS, total=part.value.item())
    for wrong in ([part, part], (p for p in (part, part))):
        with pytest.raises(
            TypeError, match=r"each an argument; argument 0 is of type .*: pass combine\(\*parts\)$"
        ):
            combine(wrong)
    with pytest.raises(TypeError, match=r"argument 1 is of type float64$"):
        combine(part, part.value)
    with pytest.raises(ValueError, match="no parts to combine"):
        LocallyAdaptiveLoss(reduction="none").parts(IMAGES, LABELS)
    with pytest.raises(ValueError, match="total="):
        LocallyAdaptiveLoss(reduction="none").value_and_grad(IMAGES, LABELS, total=part)


def _wrong(**change):
    """`combine`, with fields of the whole worked out otherwise."""

    def wrong(*parts):
        whole = combine_rightly(*parts)
        return dataclasses.replace(whole, **{name: f(parts, whole) for name, f in change.items()})

    return wrong


combine_rightly = combine
MISTAKES = {
    "power sums not rescaled": _wrong(power_sum=lambda parts, whole: sum(part.power_sum for part in parts)),
    "the smallest maximum": _wrong(maximum=lambda parts, whole: min(part.maximum for part in parts)),
    "the maxima averaged": _wrong(maximum=lambda parts, whole: sum(part.maximum for part in parts) / 2),
    "weights averaged": _wrong(weight=lambda parts, whole: whole.weight / 2),
    "the last part forgotten": lambda *parts: combine_rightly(*parts[:-1]),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_combining_are_caught(mistake, monkeypatch):
    loss = LocallyAdaptiveLoss()
    check(loss, IMAGES[:2], LABELS[:2], None, [1])
    monkeypatch.setitem(globals(), "combine", mistake)
    with pytest.raises(AssertionError):
        check(loss, IMAGES[:2], LABELS[:2], None, [1])
