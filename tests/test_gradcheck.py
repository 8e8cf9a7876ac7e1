"""The gradient checker: refuses what others are blind to, says when it can't tell, and accuses nobody falsely."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lalref
from lalref.oracle import gradcheck
from lalref.oracle.inputs import mix


def numbers(shape, salt):
    """Numbers from -2 to 2 by hash."""
    return (mix(shape, salt) % 4001 - 2000) / 1000


def mean_cross_entropy(x):
    """Softmax cross-entropy (N, C, H, W), a mean over all pixels; worked out in the dtype of x."""
    _, C, *_ = x.shape
    y = mix((x.shape[0], *x.shape[2:]), 5) % C
    onehot = y[:, None] == np.arange(C).reshape(1, C, 1, 1)
    a = x - x.max(1, keepdims=True)
    e = np.exp(a)
    s = e.sum(1, keepdims=True)
    return (np.log(s) - (a * onehot).sum(1, keepdims=True)).mean(dtype=x.dtype), (
        e / s - onehot
    ) / x.dtype.type(y.size)


def broken(f, break_it):
    """f, its gradient broken."""

    def g(x):
        value, grad = f(x)
        return value, break_it(grad.copy())

    return g


IMAGE = numbers((1, 5, 32, 32), 2)  # mean-reduced: gradients below 1e-3
LARGE = numbers((1, 10, 100, 100), 3)  # 10^5 entries
BOTH = pytest.mark.parametrize("x", [IMAGE, LARGE], ids=["5120 entries", "100000 entries"])


def border_times_1_5(grad):
    grad[:, :, :, 0] *= 1.5
    return grad


def one_off_by_a_hundredth(grad):
    grad[0, 3, 5, 9] *= 1.001
    return grad


def a_pair_swapped(grad):
    grad[0, 1, 2, [3, 4]] = grad[0, 1, 2, [4, 3]]
    return grad


# ---- float64


@BOTH
def test_a_right_gradient_of_a_mean_is_right_to_many_digits(x):
    found = gradcheck(mean_cross_entropy, x)
    assert found, found
    assert max(d.off for d in found.directions) < 1e-9


@pytest.mark.parametrize(
    ("x", "break_it", "said"),
    [
        (LARGE, np.zeros_like, "the whole gradient is zero"),
        (IMAGE, np.negative, "the whole gradient is negated"),
        (IMAGE, np.zeros_like, "the whole gradient is zero"),
        (IMAGE, lambda grad: 2 * grad, "the whole gradient is 2 times what it should be"),
        (IMAGE, lambda grad: grad * 1.000001, "the whole gradient is 1 times what it should be"),
    ],
    ids=["zero of 10^5", "negated", "zero", "doubled", "off by a millionth"],
)
def test_a_gradient_off_as_a_whole_is_refused_however_tiny_it_is(x, break_it, said):
    found = gradcheck(broken(mean_cross_entropy, break_it), x)
    assert found.verdict == "wrong"
    assert said in found.message


@pytest.mark.parametrize("break_it", [one_off_by_a_hundredth, a_pair_swapped, border_times_1_5])
def test_a_few_wrong_entries_among_many_are_found_by_name(break_it):
    found = gradcheck(broken(mean_cross_entropy, break_it), IMAGE)
    right = mean_cross_entropy(IMAGE)[1]
    wrong = np.argwhere(break_it(right.copy()) != right).tolist()
    assert found.verdict == "wrong"
    assert found.entries
    for entry in found.entries:
        assert list(entry.index) in wrong
        assert entry.expected == pytest.approx(right[entry.index], rel=1e-3)
        assert f"{entry.index}: expected {entry.expected:.6g}, got {entry.got:.6g}" in str(found)


def test_the_message_shows_direction_difference_and_ladder():
    found = gradcheck(broken(mean_cross_entropy, np.negative), IMAGE)
    text = str(found)
    assert text.startswith(
        "wrong: the whole gradient is negated: along the gradient's own signs the slope of f is"
    )
    assert "(off by 2 of its size; the tolerance is 1.5e-08)" in text
    assert text.count("\n  step ") >= 4
    last = text.splitlines()[-1].split()[-1]
    worst = max(found.directions, key=lambda d: d.off)
    assert float(last) == pytest.approx(worst.expected, rel=1e-5)


def test_the_loss_itself_passes_and_its_backward_without_one_option_does_not():
    labels = mix((1, 5, 4), 4) % 3
    x = numbers((1, 3, 5, 4), 6)

    def loss(x, **other):
        value, grad = lalref.lal_value_and_grad(x, labels, engine="array", check=False)
        return value, grad if not other else lalref.lal_value_and_grad(
            x, labels, engine="array", check=False, **other
        )[1]

    assert gradcheck(loss, x)
    assert gradcheck(lambda x: loss(x, sigma=1.01), x).verdict == "wrong"


@given(
    scale=st.sampled_from([1e-12, 1.0, 1e6]),
    factor=st.sampled_from([1e-30, 1.0, 1e30]),
    n=st.integers(1, 9),
)
def test_neither_the_scale_of_x_nor_that_of_f_matters(scale, factor, n):
    x = scale * (3 + numbers((n,), 8))

    def f(x):
        return factor * np.sum((x / scale) ** 3), factor * 3 * (x / scale) ** 2 / scale

    assert gradcheck(f, x)
    assert gradcheck(broken(f, lambda grad: 1.001 * grad), x).verdict == "wrong"


def test_scalars_and_shapes_without_axes():
    assert gradcheck(lambda x: (x**2, 2 * x), 3.0)
    assert gradcheck(lambda x: (x**2, 3 * x), 3.0).verdict == "wrong"
    assert gradcheck(lambda x: (x**2, 2 * x), np.float32(3)).tolerance == pytest.approx(0.0049, rel=0.01)
    assert gradcheck(lambda x: (0.0, x), np.ones((2, 0, 3))).message == "x has no entries"


def test_the_steps_stay_in_the_domain_where_they_can():
    x = np.array([1e-3, 0.5, 2.0])
    assert gradcheck(lambda x: (np.log(x).sum(), 1 / x), x)
    assert gradcheck(lambda x: (sum(map(math.log, x)), 1 / x), x)  # raises where NumPy gives NaN
    assert gradcheck(lambda x: (np.log(x).sum(), -1 / x), x).verdict == "wrong"


# ---- kinks


def relu(x):
    return np.maximum(x, 0).sum(), (x > 0).astype(x.dtype)


def largest(x):
    return x.max(), (x == x.max()) / (x == x.max()).sum()


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (relu, numbers((20, 30), 1) * (mix((20, 30), 2) % 50 > 0)),
        (lambda x: (abs(x).sum(), np.sign(x)), np.zeros((3, 4))),
        (lambda x: (abs(x).sum(), np.sign(x)), np.array([0.0])),
        (largest, np.array([1.0, 2.0, 2.0, 0.0])),
    ],
    ids=["relu", "abs", "one abs", "tied max"],
)
def test_a_kink_is_told_and_a_point_nearby_is_checked(f, x):
    found = gradcheck(f, x)
    assert found, found
    assert "kink at x" in found.notes[0]
    assert "nearby" in str(found)
    assert gradcheck(broken(f, lambda grad: 1.1 * grad), x).verdict == "wrong"


def test_the_entries_on_a_kink_are_named():
    x = numbers((20, 30), 1)
    x[abs(x) < 0.01] = 1
    assert not gradcheck(relu, x).notes
    x[[3, 7], [4, 11]] = 0
    assert "entries (3, 4), (7, 11)" in gradcheck(relu, x).notes[0].replace(
        "(7, 11), (3, 4)", "(3, 4), (7, 11)"
    )


def test_kinks_close_by_do_not_matter():
    x = numbers((100, 100), 1) + 1e-4  # steps along any direction cross hundreds of them
    assert np.sum(abs(x) < 1e-2) > 30
    assert not gradcheck(relu, x).notes
    assert gradcheck(relu, x)
    assert gradcheck(broken(relu, lambda grad: grad * (np.arange(100) > 0)), x).verdict == "wrong"


def test_at_a_jump_nothing_can_be_told():
    assert (
        gradcheck(lambda x: (np.floor(x).sum() + x.sum(), np.ones_like(x)), np.ones(3)).verdict
        == "inconclusive"
    )


def test_a_function_that_is_all_kinks_is_inconclusive():
    def sawtooth(x):
        return sum(abs(np.sin(x * 2.0**k)).sum() / 2.0**k for k in range(45)), np.zeros_like(x)

    assert gradcheck(sawtooth, np.zeros(3)).verdict != "right"


# ---- fewer digits


def test_float32_is_judged_with_what_its_rounding_leaves():
    narrow = IMAGE.astype(np.float32)
    found = gradcheck(mean_cross_entropy, narrow)
    assert found, found
    assert 1e-8 < found.noise < 1e-6
    for break_it in (np.zeros_like, np.negative, border_times_1_5, lambda grad: 1.02 * grad):
        assert gradcheck(broken(mean_cross_entropy, break_it), narrow).verdict == "wrong"
    assert gradcheck(broken(mean_cross_entropy, np.zeros_like), LARGE.astype(np.float32)).verdict == "wrong"


def test_float32_inside_float64_is_noticed():
    def inside(x):
        value, grad = mean_cross_entropy(x.astype(np.float32))
        return value, grad.astype(np.float64)

    found = gradcheck(inside, IMAGE)
    assert found, found
    assert found.tolerance == pytest.approx(0.0049, rel=0.01)


SMALL = numbers((1, 3, 4, 4), 7)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_inputs_with_a_float32_value_are_judged(dtype):
    def f(x):
        value, grad = mean_cross_entropy(x.astype(np.float32))
        return value, grad.astype(dtype)

    assert gradcheck(f, IMAGE.astype(dtype))
    for break_it in (np.zeros_like, np.negative, lambda grad: grad * dtype(1.5)):
        assert gradcheck(broken(f, break_it), IMAGE.astype(dtype)).verdict == "wrong"


def test_where_float16_hides_the_slope_nothing_is_claimed_but_that_it_is_hidden():
    narrow = IMAGE.astype(np.float16)
    found = gradcheck(mean_cross_entropy, narrow)
    assert found.verdict == "inconclusive"
    assert "f's values are rounded by about" in found.message
    assert gradcheck(broken(mean_cross_entropy, np.zeros_like), narrow).verdict != "right"
    assert gradcheck(broken(mean_cross_entropy, np.negative), narrow).verdict == "wrong"  # that much is seen


def test_float16_throughout_is_judged_where_its_digits_suffice():
    def f(x):
        return np.sum(x**2, dtype=x.dtype), 2 * x

    x = np.array([0.5, -1.25, 2.0], np.float16)
    assert gradcheck(f, x), gradcheck(f, x)
    assert gradcheck(broken(f, np.negative), x).verdict == "wrong"
    assert gradcheck(broken(f, lambda grad: grad * np.float16(0.5)), x).verdict == "wrong"


# ---- manners


def test_writing_to_the_input_is_told_and_does_not_mislead():
    def f(x):
        value, grad = np.sum(x**2), 2 * x
        x[...] = 0
        return value, grad

    found = gradcheck(f, IMAGE)
    assert found.verdict == "wrong"
    assert found.message.startswith("f writes to its input x (apart from that, the gradient fits")
    x = IMAGE.copy()
    gradcheck(f, x)
    np.testing.assert_array_equal(x, IMAGE)


def test_taking_a_view_for_contiguous_is_told():
    def f(x):  # what a pointer without strides reads
        flat = (x if x.base is None else x.base).reshape(-1)[: x.size].reshape(x.shape)
        return np.sum(flat**2), 2 * flat

    found = gradcheck(f, SMALL)
    assert found.verdict == "wrong"
    assert "not contiguous" in found.message


def test_x_itself_may_have_strides_and_is_read_only_for_nobody():
    x = numbers((6, 8), 4)[::-2, ::2]
    assert gradcheck(lambda x: (np.sum(x**3), 3 * x**2), x)


def test_nan_is_told():
    assert "f(x) is nan" in gradcheck(lambda x: (np.nan, x), SMALL).message
    found = gradcheck(lambda x: (np.sum(x), np.where(x == SMALL[0, 1, 2, 3], np.nan, 1.0)), SMALL)
    assert found.verdict == "wrong"
    assert "1 entries of the gradient are not finite, the first nan at (0, 1, 2, 3)" in found.message
    unread = np.where(np.arange(4) == 2, np.nan, SMALL)
    assert gradcheck(lambda x: (np.nansum(x**2), np.where(np.isnan(x), 0, 2 * x)), unread)


def test_a_random_function_is_inconclusive_and_a_state_is_wrong():
    calls = []

    def random(x):
        calls.append(0)
        return np.sum(x**2) + len(calls), 2 * x

    def accumulating(x):
        calls.append(0)
        return np.sum(x**2), 2 * x * len(calls)

    assert "random state" in gradcheck(random, SMALL).message
    assert "another gradient when it is called again" in gradcheck(accumulating, SMALL).message


def test_a_constant_with_gradient_0_is_right_and_with_another_wrong():
    assert gradcheck(lambda x: (7.0, np.zeros_like(x)), SMALL)
    assert gradcheck(lambda x: (7.0, np.full_like(x, 1e-3)), SMALL).verdict == "wrong"


@pytest.mark.parametrize(
    ("f", "x", "message"),
    [
        (lambda x: x, SMALL, "expected a tuple .value, gradient."),
        (lambda x: (x, x), SMALL, "expected one real number"),
        (lambda x: ("word", x), SMALL, "expected one real number"),
        (
            lambda x: (1.0, x[0]),
            SMALL,
            r"gradient of shape .3, 4, 4.*expected real numbers shaped as x, .1, 3, 4, 4",
        ),
        (lambda x: (1.0, x), np.arange(3), "x is of dtype int64; it can be float16"),
    ],
)
def test_what_does_not_fit_is_said(f, x, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gradcheck(f, x)
