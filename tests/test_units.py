"""The error unit: wide enough for every honest way to compute, and for nothing that is wrong."""

import dataclasses

import numpy as np
import pytest

import lalref
from lalref import truth
from lalref.oracle import dense, golden
from lalref.oracle.cases import BY_NAME, CASES
from lalref.oracle.mistakes import EQUIVALENT, Textbook
from lalref.oracle.mistakes.tape import Traced, column, exp, log
from lalref.oracle.units import error_unit
from lalref.oracle.verify import in_units

TEXTBOOK_CAN = [c for c in CASES if not c.accurate and c.unread is None and np.isfinite(c.logits).all()]
BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])


def worst_units(function, case, dtype):
    """The largest error of value and gradient in units."""
    right = golden.load()[case.name]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    with np.errstate(all="ignore"):
        value, grad = function(case.given_logits.astype(dtype), case.labels, **case.arguments)
    errors = [in_units(np.asarray(value, float), right.value, unit.value)]
    errors.append(in_units(grad.astype(float), right.grad, unit.grad))
    return max(float(e.max(initial=0)) for e in errors)


class LogSumExpThenSubtract(Textbook):
    """ell as lse - z_y, softmax as exp(z - lse)."""

    def log_softmax(self, z, s):
        m = z.value.max(1, keepdims=True, initial=-np.inf)
        return z - (column(log(exp(z - m).sum(1))) + m)


class DividesFirst(Textbook):
    """Weights are normalised before they are applied, and summed from the far end."""

    def pool_back(self, z_bar, back, x, g, s):
        A = (g.w / g.D[:, None]).T
        return np.cumsum((A[:, :, None] * z_bar)[:, ::-1], axis=1)[:, -1] if len(s.y) else z_bar


class PowersByLogarithm(Textbook):
    """r^p as exp(p log r), the root likewise."""

    def power_sum(self, r, p, g, s):
        raised = np.where(r.value > 0, np.exp(p * np.log(r.value)), 0)
        slope = np.exp((p - 1) * np.log(r.value)) if p > 1 else np.ones_like(r.value)
        return (Traced(raised, (r, lambda g_out: g_out * p * slope)) * g.omega).sum()

    def root(self, mean, p):
        return exp(log(mean) / p)


class SumsOneByOne(Textbook):
    """Stage 3's sums are taken term after term in the working dtype."""

    def power_sum(self, r, p, g, s):
        terms = r**p * g.omega
        return Traced(np.cumsum(terms.value[::-1])[-1], (terms, lambda g_out: np.full(len(s.y), g_out)))

    def base(self, g, s):
        return np.cumsum(g.omega)[-1] if s.o["reduction"] == "mean" else s.dtype(1)


class FlushesToZero(Textbook):
    """Subnormal numbers become 0, as on many accelerators."""

    def finish(self, x_bar, g, s):
        return np.where(abs(x_bar) < np.finfo(x_bar.dtype).tiny, 0, x_bar)


VARIANTS = [LogSumExpThenSubtract, DividesFirst, PowersByLogarithm, SumsOneByOne, FlushesToZero]
HONEST = [Textbook, *VARIANTS, *(equivalent.form for equivalent in EQUIVALENT)]


@BOTH
@pytest.mark.parametrize("variant", HONEST)
def test_honest_textbook_implementations_stay_within_one_unit(variant, dtype):
    errors = {case.name: worst_units(variant(), case, dtype) for case in TEXTBOOK_CAN}
    assert max(errors.values()) <= 1, max(errors, key=errors.get)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_array_engine_stays_within_two_units_and_tiny_losses_within_eight(dtype):
    import ml_dtypes

    def engine(logits, labels, **arguments):
        x = logits.astype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else logits.astype(dtype)
        return lalref.lal_value_and_grad(x, labels, engine="array", **arguments)

    for case in CASES:
        right = golden.load()[case.name]
        unit = error_unit(case, dtype, right.value[0], right.grad[0])
        value, grad = engine(case.given_logits, case.labels, **case.arguments)
        value_units = in_units(np.asarray(value, float), right.value, unit.value).max(initial=0)
        grad_units = in_units(grad.astype(float), right.grad, unit.grad).max(initial=0)
        assert max(value_units, grad_units) <= (8 if case.accurate else 2), case.name


@BOTH
@pytest.mark.parametrize("name", ["plain", "probabilities", "p-2.5", "smoothing", "weights-and-sum"])
def test_a_relative_eps_in_every_input_is_within_one_unit(name, dtype):
    case, right = BY_NAME[name], golden.load()[name]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    eps = np.finfo(dtype).eps
    signs = 2.0 * ((case.logits * 8).astype(int) % 2) - 1
    nudged = dataclasses.replace(case, logits=case.logits * (1 + eps * signs))
    moved = golden.make(nudged)  # by truth, for float64 has not the digits
    apart = abs((moved.grad[0] - right.grad[0]) + (moved.grad[1] - right.grad[1]))
    assert (apart <= unit.grad).all()
    assert apart.max() > 0
    assert abs((moved.value[0] - right.value[0]) + (moved.value[1] - right.value[1])) <= unit.value


@BOTH
def test_a_unit_is_not_needlessly_wide(dtype):
    """In plain cases four digits of float32 and thirteen of float64 are vouched for."""
    case, right = BY_NAME["plain"], golden.load()["plain"]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    eps = np.finfo(dtype).eps
    assert unit.value <= 100 * eps * right.value[0]
    told = abs(right.grad[0]) > 1e-3 * abs(right.grad[0]).max()
    assert np.median(unit.grad[told] / abs(right.grad[0])[told]) <= 1000 * eps


@BOTH
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_units_are_positive_finite_and_shaped_as_the_answer(case, dtype):
    right = golden.load()[case.name]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    assert unit.grad.shape == case.logits.shape
    assert unit.value.shape == right.value[0].shape
    assert np.isfinite(unit.grad).all()
    assert (unit.grad > 0).all()
    if not np.isnan(right.value[0]).any():
        assert np.isfinite(unit.value).all()
        assert (unit.value > 0).all()


@pytest.mark.parametrize("name", ["plain", "all-ignored", "one-image-ignored", "pixel-weight", "stride-9"])
def test_a_gradient_where_none_belongs_is_many_units(name):
    case, right = BY_NAME[name], golden.load()[name]
    unit = error_unit(case, "float32", right.value[0], right.grad[0])
    exact = right.grad[0] == 0
    pool = dense.pooling(case)
    unread = np.moveaxis(
        np.broadcast_to(~pool.member.any(0)[:, None], pool.x.shape).reshape(2, 6, 7, 3), -1, 1
    )
    np.testing.assert_array_equal(exact & unread, unread)
    assert (1e-12 / unit.grad[unread] > 30).all()


@pytest.mark.parametrize(
    "name", ["plain", "void-borders", "count-ragged", "thousands", "stride-2", "channels-last"]
)
def test_the_dense_form_agrees_with_truth(name):
    case = BY_NAME[name]
    pool = dense.pooling(case)
    options = {k: v for k, v in case.all_options.items() if k not in ("reduction", "empty")}
    stages = truth.stages(case.logits, case.labels, **options)
    valid = np.ravel_multi_index(pool.at.T if pool.at.ndim > 1 else (pool.at,), (case.labels.size,))
    grid = np.zeros(case.labels.shape, bool)
    grid.ravel()[valid] = True
    s = case.all_options["stride"]
    grid = grid[:, ::s, ::s]
    z = pool.w @ pool.x / pool.D[:, None]
    ell = dense.softmax(z).h[np.arange(pool.at.size), pool.target]

    def numbers(balls):
        return truth.doubles(balls)[0][0]

    np.testing.assert_array_equal(stages.group_size[grid], pool.member.sum(1))
    np.testing.assert_allclose(numbers(stages.D)[grid], pool.D.astype(float), rtol=1e-15)
    np.testing.assert_allclose(numbers(stages.ell)[grid], ell.astype(float), rtol=1e-15)
    merged = np.moveaxis(numbers(stages.merged), 1, -1)[grid]
    np.testing.assert_allclose(merged, z.astype(float), rtol=1e-14, atol=1e-14)


def test_the_gradient_of_16_bit_logits_pays_for_one_rounding():
    case, right = BY_NAME["plain"], golden.load()["plain"]
    narrow, wide = (error_unit(case, d, right.value[0], right.grad[0]) for d in ("float16", "float32"))
    np.testing.assert_array_equal(narrow.value, wide.value)
    rounding = 2.0**-10 * abs(right.grad[0]) + 2.0**-24
    np.testing.assert_allclose(narrow.grad - wide.grad, rounding, rtol=1e-6)
