"""The definition's number types against each other, against SciPy, and what must or must not matter."""

import ast
import cmath
import math
from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np
import pytest
from flint import arb, arb_series, ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from lalref import definition
from lalref.definition import loss

INF, NAN = math.inf, math.nan


# ---- number types ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dual:
    """The type of one's own that the module's text asks for: a value and one derivative."""

    real: float
    dot: float = 0.0

    def __add__(self, other):
        other = dual(other)
        return Dual(self.real + other.real, self.dot + other.dot)

    def __mul__(self, other):
        other = dual(other)
        return Dual(self.real * other.real, self.dot * other.real + self.real * other.dot)

    def __truediv__(self, other):
        other = dual(other)
        return self * Dual(1 / other.real, -other.dot / other.real**2)

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -dual(other)

    def __rsub__(self, other):
        return dual(other) - self

    __radd__, __rmul__ = __add__, __mul__

    def exp(self):
        return Dual(math.exp(self.real), math.exp(self.real) * self.dot)

    def log(self):
        return Dual(math.log(self.real), self.dot / self.real)


def dual(x):
    return x if isinstance(x, Dual) else Dual(x)


def fixed(shape, scale=1.0):
    """Logits by a formula."""
    i = np.arange(math.prod(shape)).reshape(shape)
    return scale * np.round(64 * np.sin(1.0 + 7.0 * i + 0.13 * i * i)) / 32


LOGITS = fixed((2, 3, 4, 3))
LABELS = np.array(
    [[[0, 0, 1], [2, 0, 1], [1, 1, 255], [2, 2, 0]], [[1, 1, 1], [1, 0, 1], [1, 1, 1], [255, 2, 2]]]
)
VARIANTS = [
    {},
    {"p": 1, "label_smoothing": 0.25},
    {"p": 2.5, "normalize": "count", "stride": 2},
    {"space": "probabilities", "class_weight": [1.0, 0.25, 2.0]},
    {
        "space": "probabilities",
        "normalize": "count",
        "reduction": "sum",
        "sigma": None,
        "kernel_size": (3, 5),
    },
]


def typed(number, tangent=None):
    """LOGITS as an object array of number(x, v)."""
    flat = tangent.ravel() if tangent is not None else np.zeros(LOGITS.size)
    out = np.empty(LOGITS.size, object)
    for i, (x, v) in enumerate(zip(LOGITS.ravel().tolist(), flat.tolist(), strict=True)):
        out[i] = number(x, v)
    return out.reshape(LOGITS.shape)


@pytest.fixture
def series():
    before = ctx.prec, ctx.cap
    ctx.prec, ctx.cap = 200, 2
    yield
    ctx.prec, ctx.cap = before


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.usefixtures("series")
def test_number_types_agree_in_value_and_derivative(options):
    v = fixed(LOGITS.shape, 0.5)[:, ::-1]
    value = loss(LOGITS, LABELS, **options)
    of = {
        "lists": loss(LOGITS.tolist(), LABELS.tolist(), **options),
        "float32": loss(LOGITS.astype(np.float32), LABELS, **options),
        "longdouble": loss(LOGITS.astype(np.longdouble), LABELS, **options),
        "NumPy scalars": loss(typed(lambda x, v: np.float64(x)).tolist(), LABELS, **options),
    }
    complex_step = loss(LOGITS + 1e-30j * v, LABELS, **options)
    by_dual = loss(typed(Dual, v), LABELS, **options)
    ball = loss(typed(lambda x, v: arb(x)), LABELS, **options)
    by_series = loss(typed(lambda x, v: arb_series([x, v]), v), LABELS, **options)
    with mpmath.workdps(60):
        h = mpmath.mpf(10) ** -20
        up, down = (
            loss(typed(lambda x, v, s=s: mpmath.mpf(x) + s * v * h, v), LABELS, **options) for s in (1, -1)
        )
        slope = (up - down) / (2 * h)
        assert abs((up + down) / 2 - mpmath.mpf(ball.mid().str(50, radius=False))) < 1e-37

    assert arb(200).rad() == 0  # the fixture's precision is what the balls below are held to
    assert ball.rad() < 1e-50
    assert ball.overlaps(by_series[0])
    assert of == {name: pytest.approx(float(ball), rel=1e-14) for name in of}
    assert [value, complex_step.real, by_dual.real] == pytest.approx([float(ball)] * 3, rel=1e-14)
    derivative = float(by_series[1])
    assert [complex_step.imag * 1e30, by_dual.dot, float(slope)] == pytest.approx([derivative] * 3, rel=1e-12)


def test_nan_in_complex_numbers_raises_nothing():
    assert cmath.isnan(loss(np.array([[complex(NAN), 0]]), [0]))


# ---- against another implementation, and what must not matter ---------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2), (2, 1, 3, 2), (2, 2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_kernel_1_and_p_1_is_cross_entropy_on_0_to_5_axes(shape, space):
    x = fixed((2, 3, *shape), 3.0)
    y = (np.arange(2 * math.prod(shape)) % 4).reshape(2, *shape)  # 3 is ignored
    own = np.take_along_axis(-log_softmax(x, axis=1), np.minimum(y, 2)[:, None], axis=1)[:, 0] * (y != 3)
    options = {"kernel_size": 1, "p": 1, "ignore_index": 3, "space": space}
    assert loss(x, y, **options) == pytest.approx(own.sum() / (y != 3).sum(), rel=1e-14)
    assert loss(x, y, **options, reduction="sum") == pytest.approx(own.sum(), rel=1e-14)
    assert np.array(loss(x, y, **options, reduction="none")) == pytest.approx(own, rel=1e-14)


small = st.floats(-8, 8, width=32)


@st.composite
def problems(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    C = draw(st.integers(1, 3))
    count = math.prod(shape)
    x = draw(st.lists(small, min_size=C * count, max_size=C * count))
    y = draw(st.lists(st.sampled_from([*range(C), 255]), min_size=count, max_size=count))
    options = {
        "kernel_size": draw(st.sampled_from([1, 3, 5])),
        "sigma": draw(st.sampled_from([0.5, 1.0, None])),
        "space": draw(st.sampled_from(["logits", "probabilities"])),
        "normalize": draw(st.sampled_from(["weights", "count"])),
        "p": draw(st.sampled_from([1, 2.5, 5, INF])),
    }
    return np.array(x).reshape(1, C, *shape), np.array(y).reshape(1, *shape), options


@given(problems(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_what_must_not_matter(problem, random):
    x, y, options = problem
    value = loss(x, y, **options)
    assert value >= 0
    same = []
    shift = np.array([random.uniform(-3, 3) for _ in range(y.size)]).reshape(y.shape)
    same.append((x + shift[:, None], y))  # a constant added to all classes of a pixel
    order = random.sample(range(x.shape[1]), x.shape[1])
    renamed = np.where(y == 255, 255, np.argsort(order)[np.minimum(y, x.shape[1] - 1)])
    same.append((x[:, order], renamed))  # the names of the classes
    same.append((x[..., None], y[..., None]))  # an axis of length 1 more
    axes = tuple(range(1, y.ndim))
    same.append((np.flip(x, tuple(a + 1 for a in axes)), np.flip(y, axes)))  # a mirror
    same.append((np.concatenate([x, x]), np.concatenate([y, y])))  # the batch twice
    same.append((np.concatenate([x, x]), np.concatenate([y, 0 * y + 255])))  # an image without a label
    for logits, labels in same:
        assert loss(logits, labels, **options) == pytest.approx(value, rel=1e-11, abs=1e-13)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_the_mean_lies_between_the_losses_and_grows_with_p(problem):
    x, y, options = problem
    if (y == 255).all():
        y = 0 * y
    ells = [
        e
        for e, label in zip(np.ravel(loss(x, y, **options, reduction="none")), y.ravel(), strict=True)
        if label != 255
    ]
    means = [loss(x, y, **{**options, "p": p}) for p in (1, 2, 5, 40, INF)]
    for low, high in zip([min(ells), *means], [*means, max(ells)], strict=True):
        assert low <= high * (1 + 1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kernel_size", 5), ("kernel_size", (3, 1)), ("sigma", 0.7), ("sigma", None), ("stride", 2),
        ("space", "probabilities"), ("normalize", "count"), ("p", 2.0), ("p", INF), ("label_smoothing", 0.1),
        ("ignore_index", (255, 0)), ("ignore_index", (255, 2)), ("class_weight", (1.0, 2.0, 3.0)),
        ("reduction", "sum"), ("pixel_weight", np.arange(24.0).reshape(2, 4, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_every_option_matters(option, value):
    base = loss(LOGITS, LABELS, kernel_size=3)
    assert abs(loss(LOGITS, LABELS, **{"kernel_size": 3, option: value}) - base) > 1e-4 * base


def test_defaults():
    said = {
        "kernel_size": 5, "sigma": 1.0, "stride": 1, "space": "logits", "normalize": "weights", "p": 5.0,
        "label_smoothing": 0.0, "ignore_index": 255, "class_weight": None, "reduction": "mean",
        "pixel_weight": None, "empty": "zero",
    }  # fmt: skip
    assert loss(LOGITS, LABELS) == loss(LOGITS, LABELS, **said)


@pytest.mark.parametrize("name", ["definition", "anynumber", "balls", "proof", "truth"])
def test_the_rungs_share_nothing_with_the_engines(name):
    allowed = {"definition", "anynumber", "balls", "proof", "numpy", "flint", ""}
    allowed |= {
        "functools",
        "itertools",
        "math",
        "cmath",
        "collections",
        "numbers",
        "typing",
        "contextlib",
        "dataclasses",
    }
    tree = ast.parse(Path(definition.__file__).with_name(f"{name}.py").read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.module else [alias.name for alias in node.names]
            found |= {n.split(".")[0] for n in names}
    assert found <= allowed
