"""The first stage that differs: mistakes of the catalogue stand in for unknown ones, for their stage is known."""

import pytest
from diagnosing import asker, observed

from lalref.oracle import verify
from lalref.oracle.isolate import ONE, THREE, TWO, first_stage
from lalref.oracle.mistakes import BY_ID, Textbook
from lalref.oracle.whereabouts import whereabouts

STAGE = {
    "window-too-short": ONE,
    "euclidean-distance": ONE,
    "reads-every-class": ONE,
    "divides-by-the-window-area": ONE,
    "no-softmax": TWO,
    "exp-without-the-maximum": TWO,
    "logarithm-to-base-two": TWO,
    "labels-transposed": TWO,
    "no-root": THREE,
    "only-the-maximum": THREE,
    "divides-by-the-batch-size": THREE,
    "weights-twice": THREE,
    "neighbours-divisor": ONE,
    "softmax-of-the-pixels-own-logits": ONE,
    "normaliser-forgotten": TWO,
    "exponent-not-lowered": THREE,
    "maximum-detached-outside": THREE,
}
FEW = {"kernel_size", "sigma", "p", "grad_output"}


def stages_told(mistake, options=None, ask=True):
    """Which stages are told of a subject that makes it, and takes these options; all of them by default."""
    f = BY_ID[mistake].subject()
    core = observed(f, dtypes=["float64"], keep=lambda c: options is None or c.asks_for() <= options)
    text = first_stage(core, asker(f) if ask else None)
    return [stage for stage in (ONE, TWO, THREE) if stage in text]


@pytest.mark.parametrize("mistake", STAGE)
def test_the_stage_of_a_mistake_is_told_and_no_other(mistake):
    assert stages_told(mistake) == [STAGE[mistake]]


@pytest.mark.parametrize(
    "mistake", ["euclidean-distance", "no-softmax", "no-root", "divides-by-the-batch-size"]
)
def test_of_a_subject_without_reduction_what_is_told_is_as_true(mistake):
    """Its mean over windows can't be taken away: a mistake there is told with stage 2, in words that have both."""
    assert stages_told(mistake, FEW) == (
        [TWO] if mistake == "divides-by-the-batch-size" else [STAGE[mistake]]
    )


@pytest.mark.parametrize("mistake", [mistake for mistake in STAGE if mistake != "weights-twice"])
def test_of_a_subject_without_options_no_false_stage_is_told(mistake):
    assert set(stages_told(mistake, {"grad_output"}, ask=False)) <= {STAGE[mistake]}


def test_both_stages_are_told_where_both_are_wrong():
    form = type("Both", (BY_ID["euclidean-distance"].form, BY_ID["no-root"].form), {})
    core = observed(form(), dtypes=["float64"], keep=lambda c: c.asks_for() <= FEW and c.logits.size == 24)
    core += observed(form(), dtypes=["float64"], keep=lambda c: c.name in ("kernel-1", "p-1"))
    text = first_stage(core, asker(form()))
    assert text.endswith(f"it is right at kernel_size=1 and p=1, and with neither alone: {ONE}, and {THREE}.")


@pytest.mark.parametrize(
    ("mistake", "option"),
    [
        ("upstream-ignored", "grad_output"),  # of no stage
        ("map-without-weights", "reduction"),  # its only wrong case has an unusual sigma, too
        ("whole-weights", "class_weight"),
    ],
)
def test_an_option_that_has_to_be_there_is_told_in_place_of_a_stage(mistake, option):
    f = BY_ID[mistake].subject()
    text = whereabouts(observed(f, dtypes=["float64"]), asker(f))
    assert f"It is wrong only where {option} is not at its default." in text
    assert not any(stage in text for stage in (ONE, TWO, THREE))


class Squared(Textbook):
    """A hundredth of the square is added to every window loss, in options that the caller chose to take."""

    def cross_entropy(self, z, g, s):
        ell = super().cross_entropy(z, g, s)
        return ell + ell * ell * s.dtype(0.01)


def test_a_quick_verdict_asks_beyond_its_own_cases():
    summary = verify(Squared(), quick=True, dtype="float64").diagnosis.summary
    assert f"the window losses are wrong even at kernel_size=1: {TWO}" in summary


def test_a_subject_that_raises_when_asked_again_is_told_no_stage():
    f = BY_ID["no-root"].subject()

    def ask(case, dtype):
        raise RuntimeError

    assert first_stage(observed(f, dtypes=["float64"], keep=lambda case: case.quick), ask) == ""
