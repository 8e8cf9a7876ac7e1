"""Truth's balls: proven, and derived a second time by differences of 80 digits.

The second derivation is put on trial too: a row of mistakes in how truth carries derivatives must each make
the two disagree.
"""

import math

import mpmath
import numpy as np
import pytest
import test_truth_edges as edges
from flint import arb, arb_series, ctx

from lalref import anynumber, balls, definition, proof, truth

INF = math.inf
H = mpmath.mpf(2) ** -44  # step of the gradient: h⁴ ~ 1e-53 is cut off, and 1e-80 / h ~ 1e-67 rounded
H2 = mpmath.mpf(2) ** -66  # step of Hv, in 160 digits: h² ~ 1e-40 is cut off, 1e-160 / h² ~ 1e-120 rounded
STENCIL = ((-2, 1), (-1, -8), (1, 8), (2, -1))  # f'(x) = Σ c f(x + k h) / 12 h + O(h⁴)


def fixed(shape, scale=1.0, phase=0.0):
    """Logits by a formula, exact in bfloat16."""
    i = np.arange(math.prod(shape)).reshape(shape)
    return scale * np.round(32 * np.sin(1.0 + phase + 7.0 * i + 0.13 * i * i)) / 16


SHAPE = (2, 3, 3, 2)
X, V, U = fixed(SHAPE), fixed(SHAPE, 0.5, 2.0), fixed(SHAPE, 1.0, 5.0)
Y = np.array([[[0, 0], [2, 0], [1, 255]], [[1, 1], [1, 0], [2, 1]]])
SURE = 64.0 * np.moveaxis(np.eye(3)[np.minimum(Y, 2)], -1, 1)  # a margin that leaves losses of e^-64
OMEGA = np.arange(12.0).reshape(2, 3, 2) / 8
MAP = fixed((2, 2, 2), 1.0, 1.0)  # an upstream gradient for reduction="none" with stride (2, 1)

CASES = {
    "defaults": (X, {}),
    "p 1, smoothing": (X, {"p": 1, "label_smoothing": 0.25, "kernel_size": 3}),
    "p 2.5, count, stride, sum": (X, {"p": 2.5, "normalize": "count", "stride": 2, "reduction": "sum"}),
    "p inf": (X, {"p": INF}),
    "weights": (X, {"class_weight": [1.0, 0.3, 2.0], "pixel_weight": OMEGA, "kernel_size": (3, 5)}),
    "map": (X, {"reduction": "none", "stride": (2, 1), "grad_output": MAP}),
    "sure": (X + SURE, {"kernel_size": 3}),
    "sure and smoothed": (X + SURE, {"label_smoothing": 0.1, "kernel_size": 3}),
    "large": (500 * X, {"p": 3, "grad_output": -0.5}),
    "probabilities": (X, {"space": "probabilities"}),
    "probabilities, count, p inf": (X, {"space": "probabilities", "normalize": "count", "p": INF}),
    "probabilities, p 2.5": (X, {"space": "probabilities", "p": 2.5, "sigma": None, "grad_output": 1.7}),
    "probabilities, sure": (X + SURE, {"space": "probabilities"}),
    "probabilities, large": (500 * X, {"space": "probabilities", "p": 1, "kernel_size": 3}),
    "probabilities, map": (
        X,
        {"space": "probabilities", "reduction": "none", "class_weight": [1.0, 0.0, 3.0]},
    ),
}
every_case = pytest.mark.parametrize(("x", "options"), CASES.values(), ids=CASES.keys())


def is_proven(entries):
    """Whether each radius is <= 2^-120 of its entry, or of the largest where the ball holds 0."""
    entries = np.ravel(entries)
    largest = max(e.abs_lower() for e in entries)
    return all(
        e.rad() * 2**120 <= e.abs_lower() or (e.contains(0) and e.rad() * 2**120 <= largest) for e in entries
    )


def inner(a, b):
    """Σ a b as a ball."""
    with_balls = (
        x * (y if isinstance(y, arb) else arb(float(y)))
        for x, y in zip(np.ravel(a), np.ravel(b), strict=True)
    )
    return sum(with_balls, arb(0))


def without_upstream(options):
    return {name: option for name, option in options.items() if name != "grad_output"}


@pytest.fixture(autouse=True)
def wide_balls():
    """The tests' own sums of balls keep 400 bits."""
    before = ctx.prec
    ctx.prec = 400
    yield
    ctx.prec = before


@every_case
def test_every_radius_is_proven(x, options):
    found = truth.hvp(x, Y, V, **options)
    assert is_proven(found.grad)
    assert is_proven(found.grad_dot)
    assert all(is_proven([v]) for v in np.ravel(found.value))
    assert is_proven(found.value_dot)
    assert is_proven(truth.value_and_grad(x, Y, **options).grad)


def is_one_story(x, options):
    """Whether <gradient, v> is the jvp and u'Hv = v'Hu, as balls."""
    plain = without_upstream(options)
    first, second = truth.hvp(x, Y, V, **options), truth.hvp(x, Y, U, **options)
    grad = truth.value_and_grad(x, Y, **options).grad
    forward = truth.jvp(x, Y, V, **plain)
    upstream = options.get("grad_output", 1.0)
    slope = inner(forward.value_dot, np.broadcast_to(upstream, np.shape(forward.value_dot)))
    bend, same = inner(first.grad_dot, U), inner(second.grad_dot, V)
    assert max(slope.rad(), bend.rad()) < 1e-30 * max(abs(slope), arb(1e-300))
    assert all(map(arb.overlaps, grad.ravel(), first.grad.ravel()))
    return inner(grad, V).overlaps(slope), bend.overlaps(same)


@pytest.mark.parametrize(
    ("largest", "bound"),
    [(arb(1), 1194), (arb(2) ** -1000, 1194), (arb(2) ** -2000, 2120), (arb(0), 4096)],
)
def test_a_ball_that_holds_zero_is_settled_only_far_below_the_largest(largest, bound):
    """Two entries, one of them a true zero whose radius is 2^-(the precision)."""
    entries = {(0,): lambda: largest, (1,): lambda: arb(0, arb(2) ** -ctx.prec)}
    problem = balls.Problem([[0.0]], [0], {})
    found = proof.prove(problem, lambda run: list(entries), lambda run, key: (entries[key](),), 1)
    radius = found[1,][0].rad()
    assert radius <= arb(2) ** -bound
    assert radius > arb(2) ** (-2 * bound)  # no more than it takes: the precision doubles, about


@every_case
def test_jvp_hvp_and_gradient_tell_one_story(x, options):
    assert is_one_story(x, options) == (True, True)


def test_a_proof_that_is_too_lax_is_seen(monkeypatch):
    monkeypatch.setattr(proof, "RELATIVE", 40)
    monkeypatch.setattr(proof, "BITS", (100,))
    assert not is_proven(truth.value_and_grad(X, Y).grad)


# ---- a second derivation --------------------------------------------------------------------------


def by_definition(x, steps, options):
    """The definition in mpmath's digits at x + Σ steps, as one number, upstream gradient applied."""
    numbers = np.vectorize(mpmath.mpf, otypes=[object])(x)
    for h, direction in steps:
        numbers = numbers + h * np.vectorize(mpmath.mpf, otypes=[object])(direction)
    found = definition.loss(numbers, Y, **without_upstream(options))
    upstream = np.broadcast_to(options.get("grad_output", 1.0), np.shape(found))
    return sum(a * float(b) for a, b in zip(np.ravel(np.array(found, object)), upstream.ravel(), strict=True))


def unit(index):
    e = np.zeros(SHAPE)
    e[index] = 1
    return e


def slope(x, e, options):
    """The derivative along e by a five-point difference."""
    return sum(c * by_definition(x, [(k * H, e)], options) for k, c in STENCIL) / (12 * H)


def bend(x, e, options):
    """e'Hv by a mixed difference."""
    corners = [(s, t) for s in (1, -1) for t in (1, -1)]
    total = sum(s * t * by_definition(x, [(s * H2, e), (t * H2, V)], options) for s, t in corners)
    return total / (4 * H2**2)


def agreement(x, options, sample=5):
    """Digits to which differences and truth agree, counted from the largest entry: gradient and Hv."""
    found = truth.hvp(x, Y, V, **options)
    peaks = (int(np.abs(entries.astype(float)).argmax()) for entries in (found.grad, found.grad_dot))
    flat = {*range(0, X.size, sample), *peaks}
    indices = [tuple(map(int, np.unravel_index(i, SHAPE))) for i in flat]
    worst = []
    for entries, difference, dps in ((found.grad, slope, 80), (found.grad_dot, bend, 160)):
        with mpmath.workdps(dps):
            largest = max(abs(mpmath.mpf(e.mid().str(90, radius=False))) for e in entries.ravel())
            apart = [
                abs(difference(x, unit(i), options) - mpmath.mpf(entries[i].mid().str(90, radius=False)))
                for i in indices
            ]
            worst.append(float(-mpmath.log10(max(apart) / largest)) if largest else 0.0)
    return worst


@every_case
def test_differences_of_80_digits_agree(x, options):
    of_grad, of_hvp = agreement(x, options)
    assert of_grad > 40
    assert of_hvp > 30


def _drop_a_window(run_init):
    def wrong(self, problem):
        run_init(self, problem)
        self.reach = {
            key: windows[:-1] if len(windows) > 1 else windows for key, windows in self.reach.items()
        }

    return wrong


def _constant(name):
    """The function, but what it gives is held constant: the derivative is lost on the way."""

    def wrong(original):
        def without(*args, **kwargs):
            result = original(*args, **kwargs)
            return result if not hasattr(result, "coeffs") else arb_series([result[0]])

        return without

    return name, wrong


MISTAKES = {  # name: (module or class, attribute, what it is replaced by)
    "a window that reads the logit is forgotten": (balls.Run, "__init__", _drop_a_window),
    "the move takes the tangent's place": (
        balls.Run, "number", lambda f: lambda self, n, q, c, move=0: (
            arb_series([arb(self.problem.x[n, c, *q]), move]) if move else f(self, n, q, c))),
    "the root's derivative is lost": (definition, *_constant("root")),
    "the power's derivative is lost": (definition, *_constant("power")),
    "the normaliser's derivative is lost": (definition, *_constant("log")),
    "the merged vector's derivative is lost": (definition, *_constant("merged")),
    "powers are differentiated as p = 1": (
        definition, "power", lambda f: lambda x, a: x * (anynumber.leading(f(x, a)) / anynumber.leading(x))),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_differences_catch(mistake, monkeypatch):
    owner, name, replace = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, replace(getattr(owner, name)))
    assert min(agreement(X, {"kernel_size": 3}, sample=2)) < 3


def test_a_forgotten_window_spoils_the_story(monkeypatch):
    monkeypatch.setattr(balls.Run, "__init__", _drop_a_window(balls.Run.__init__))
    assert is_one_story(X, {"kernel_size": 3}) == (False, False)


# ---- locality -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["defaults", "weights", "probabilities", "p 2.5, count, stride, sum"])
def test_locality_changes_nothing(name):
    x, options = CASES[name]
    found = truth.value_and_grad(x, Y, **options)
    for index in [(0, 0, 0, 0), (0, 2, 2, 0), (1, 1, 2, 1), (1, 0, 1, 1)]:
        ctx.cap = 2
        series = np.empty(SHAPE, object)
        for i in np.ndindex(SHAPE):
            series[i] = arb_series([arb(x[i]), int(i == index)])
        whole = definition.loss(series, Y, **options)
        ctx.cap = 10
        assert whole[1].overlaps(found.grad[index])
        assert whole[1].rad() < 1e-60


# ---- the checks of the other file on trial ----------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "arguments", "owner", "name", "wrong"),
    [
        (edges.test_a_tie_shares_the_gradient_by_omega_and_says_so, (), balls.Run, "ties",
         lambda f: lambda self: f(self)[:1]),
        (edges.test_ties_reach_as_far_as_16_eps, (2.0**-22, np.float32, True), balls.np, "finfo",
         lambda f: lambda dtype: f(np.float64)),
        (edges.test_ignored_pixels_are_not_read_and_have_gradient_0, ("logits",), definition, "group",
         lambda f: lambda p, y, shape, radii: f(p, dict.fromkeys(y, 0), shape, radii)),
        (edges.test_excluded_classes_have_gradient_0, ("logits",), balls.Run, "excluded",
         lambda f: lambda self, n, q, c: False),
        (edges.test_a_pixel_that_is_certain_either_way_moves_nothing_in_probability_space, (), balls.Run,
         "is_still", lambda f: lambda self, n, q, c: self.excluded(n, q, c)),
        (edges.test_a_window_without_loss_beside_one_with, (), balls.Run, "is_constant",
         lambda f: lambda self, i: False),
        (edges.test_precision_rises_until_a_tiny_loss_is_proven, (100.0, "logits"), proof, "RELATIVE",
         lambda f: 20),
        (edges.test_inputs_are_exact_in_every_dtype, (np.float16,), balls, "exact",
         lambda f: lambda name, a: f(name, a) * (1 + 2.0**-40 * (np.asarray(a).dtype == np.float16))),
        (edges.test_stored_doubles_hold_the_ball, (2,), math, "nextafter", lambda f: lambda a, b: a / 2),
    ],
    ids=lambda part: getattr(part, "__name__", "").removeprefix("<lambda>"),
)  # fmt: skip
def test_the_checks_of_edges_catch(check, arguments, owner, name, wrong, monkeypatch):
    check(*arguments)
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    with pytest.raises((AssertionError, ValueError, ArithmeticError)):
        check(*arguments)
