"""The catalogue of mistakes: whole, understandable, and refused entry by entry."""

import functools
from collections import Counter

import numpy as np
import pytest

from lalref.oracle import verify
from lalref.oracle.cases import BY_NAME
from lalref.oracle.matrix import units_by_case
from lalref.oracle.mistakes import BY_ID, CATALOGUE, EQUIVALENT, Textbook, evaluate
from lalref.oracle.mistakes.entry import STAGE_OF
from lalref.oracle.mistakes.forms_backward import BACKWARD_FORMS
from lalref.oracle.mistakes.forms_loss import LOSS_FORMS
from lalref.oracle.mistakes.forms_minkowski import MINKOWSKI_FORMS
from lalref.oracle.mistakes.forms_pooling import POOLING_FORMS
from lalref.oracle.mistakes.tape import Traced, column, exp, linear, log, vjp, where

BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])
WEAKEST = 30  # units: what every mistake reaches in the case that shows it best
LIMIT = 8
NAMED = functools.partial(pytest.mark.parametrize, ids=lambda entry: entry.id)


# ---- the catalogue as a text


def test_there_are_enough_mistakes_of_each_kind():
    stages = Counter(mistake.stage for mistake in CATALOGUE)
    assert len(CATALOGUE) >= 140
    assert {mistake.group for mistake in CATALOGUE} == set(STAGE_OF)
    assert min(stages.values()) >= 5
    assert stages["backward"] >= 30


def test_ids_and_sentences_are_all_different():
    assert len(BY_ID) == len(CATALOGUE)
    assert len({mistake.sentence for mistake in CATALOGUE}) == len(CATALOGUE)
    assert len({mistake.form for mistake in CATALOGUE}) == len(CATALOGUE)


@NAMED("mistake", CATALOGUE)
def test_an_entry_says_what_why_and_where_from(mistake):
    assert mistake.sentence.startswith("Your ")
    assert mistake.sentence.endswith(".")
    assert len(mistake.sentence) <= 120
    assert mistake.formula
    assert mistake.why.endswith((".", "?"))
    if mistake.source:
        repository, number = mistake.source.split("#")
        assert repository.count("/") == 1
        assert number.isdigit()


@NAMED("mistake", CATALOGUE)
def test_a_mistake_overrides_one_piece_or_two(mistake):
    """Forwards of both spaces, or a piece and what goes with it: no entry is a copy of the whole."""
    pieces = [name for name in vars(mistake.form) if not name.startswith("_")]
    assert mistake.stage == "state" or 1 <= len(pieces) <= 3


def test_every_other_form_belongs_to_an_entry_and_differs_from_its_fellows():
    forms = [variant for mistake in CATALOGUE for variant in mistake.variants]
    rooms = (POOLING_FORMS, LOSS_FORMS, MINKOWSKI_FORMS, BACKWARD_FORMS)
    written = [variants for room in rooms for variants in room.values()]
    assert len(forms) == sum(map(len, written)) >= 80  # an id that is misspelt would lose its forms
    for mistake in CATALOGUE:
        assert len(set(mistake.forms)) == len(mistake.forms)
        formulas = [mistake.formula, *(variant.formula for variant in mistake.variants)]
        assert len(set(formulas)) == len(formulas)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(v.form, id=f"{m.id}: {v.formula}")
        for m in CATALOGUE
        for v in m.variants
        if m.stage != "state"
    ],
)
def test_every_other_form_is_refused_too(form):
    assert max(units_by_case(form(), "float64").values()) >= WEAKEST


# ---- what it runs over


@BOTH
def test_the_textbook_is_right_within_one_unit(dtype):
    assert max(units_by_case(Textbook(), dtype).values()) <= 1


ROUNDS = (
    "half-precision-inside",
    "accumulates-in-half",
)  # to 16 bits: in steps, that differences fall between


@NAMED("mistake", [m for m in CATALOGUE if m.forward and m.id not in ROUNDS])
def test_a_wrong_loss_comes_with_its_own_gradient(mistake):
    """Differences of the wrong loss itself: what a gradient checker would see, and be content with."""
    rng = np.random.default_rng(5)
    for name in ("scattered-void", "weights-and-sum", "probabilities-weights", "smoothing-count-stride"):
        case, f = BY_NAME[name], mistake.subject()
        x = case.logits + 1e-3 * rng.standard_normal(case.logits.shape)  # away from ties
        arguments = {**case.arguments, "grad_output": 1.0}
        direction = rng.standard_normal(x.shape)
        _, grad = f(x, case.labels, **arguments)
        h = 1e-6 if "precision" not in mistake.id else 1e-2
        up, down = (f(x + s * h * direction, case.labels, **arguments)[0] for s in (1, -1))
        slope = (up - down) / (2 * h)
        close = 1e-5 if "precision" not in mistake.id else 1e-2
        assert slope == pytest.approx((grad * direction).sum(), rel=close, abs=close * abs(grad).sum()), name


def test_the_pieces_of_tape_agree_with_differences():
    A = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    x = np.array([[0.3, 0.7], [1.2, 0.4], [0.9, 2.0]])

    def f(v):
        z = linear(A, v) / np.array([[2.0], [3.0]])
        s = column(exp(z * 0.5 - 1.0).sum(1)) + 2 / (1 + 0 * A[:, :1])
        y = where(z.value > 0.3, log(s) * z * z + 1 - z / 9, 0.1) ** 2.5 / (z + 3.0)
        return (y[np.array([0, 1, 1]), np.array([1, 0, 0])] * np.array([1.0, 2.0, -3.0])).sum() + y.sum()

    value, back = vjp(f, x)
    grad = back(np.array(1.7))
    for index in np.ndindex(x.shape):
        h = np.zeros_like(x)
        h[index] = 1e-6
        slope = (f(Traced(x + h)).value - f(Traced(x - h)).value) / 2e-6
        assert grad[index] == pytest.approx(1.7 * slope, rel=1e-7)
    assert value == f(Traced(x)).value
    np.testing.assert_array_equal(vjp(lambda v: Traced(np.ones(())), x)[1](np.array(1.0)), 0 * x)


def test_forward_and_backward_may_come_from_different_forms():
    case = BY_NAME["sigma-3"]
    wrong, right = BY_ID["euclidean-distance"].subject(), Textbook()
    given = (case.logits, case.labels, case.arguments)
    value, grad = evaluate(right, wrong, *given)
    assert value == right(case.logits, case.labels, **case.arguments)[0]
    assert abs(grad - right(case.logits, case.labels, **case.arguments)[1]).max() > 1e-3
    value, grad = evaluate(wrong, right, *given)
    assert value == wrong(case.logits, case.labels, **case.arguments)[0]
    assert abs(grad - wrong(case.logits, case.labels, **case.arguments)[1]).max() > 1e-3


# ---- the kill rate


@BOTH
@NAMED("mistake", [m for m in CATALOGUE if m.stage != "state"])
def test_every_mistake_is_refused_by_a_wide_margin(mistake, dtype):
    most = max(units_by_case(mistake.subject(), dtype).values())
    assert (most >= WEAKEST) == (dtype in mistake.dtypes)
    assert most >= WEAKEST or most <= 1


@BOTH
@NAMED("mistake", [m for m in CATALOGUE if m.stage == "state"])
def test_every_mistake_of_memory_is_refused(mistake, dtype):
    assert verify(mistake.subject(), dtype=dtype).verdict == "wrong"


@BOTH
@NAMED("equivalent", EQUIVALENT)
def test_what_changes_nothing_is_let_pass(equivalent, dtype):
    assert max(units_by_case(equivalent.form(), dtype).values()) <= 1
    assert equivalent.proof.endswith(".")


@NAMED("equivalent", EQUIVALENT)
def test_an_equivalent_change_is_a_change(equivalent):
    """In bits or in steps: it would prove nothing otherwise."""
    assert {name for name in vars(equivalent.form) if not name.startswith("__") or name == "__call__"}
