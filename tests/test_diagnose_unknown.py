"""Diagnosis: what is not in the catalogue gets no name, and it is told where it is; what is right gets nothing."""

import functools
import math

import numpy as np
import pytest
from diagnosing import asker, names, observed, textbook

import lalref
from lalref.oracle import golden, verify
from lalref.oracle.call import Answer
from lalref.oracle.cases import BY_NAME
from lalref.oracle.diagnose import Observed, diagnose
from lalref.oracle.mistakes import BY_ID, EQUIVALENT, Textbook
from lalref.oracle.mistakes.tape import exp, log
from lalref.oracle.suspects import AGREES

array_engine = functools.partial(lalref.lal_value_and_grad, engine="array")


# ---- no false name


class InverseSquare(Textbook):
    """The weight is 1 / (1 + (d/sigma)²)."""

    def weight(self, d, sigma):
        return 1 / (1 + (d / sigma) ** 2)


class QuadraticExtra(Textbook):
    """A hundredth of the square is added to every window loss."""

    def cross_entropy(self, z, g, s):
        ell = super().cross_entropy(z, g, s)
        return ell + ell * ell * s.dtype(0.01)


class BlurredBackward(Textbook):
    """A tenth of each pixel's gradient also goes to the next pixel."""

    def pool_back(self, z_bar, back, x, g, s):
        x_bar = back(z_bar)
        return x_bar + np.roll(x_bar, 1, axis=0) * s.dtype(0.1)


class ClippedGradient(Textbook):
    """The gradient is clipped at 0.01."""

    def finish(self, x_bar, g, s):
        return np.clip(x_bar, -0.01, 0.01).astype(s.dtype)


class MixedRoot(Textbook):
    """A hundredth of the mean of powers is mixed into its root."""

    def root(self, mean, p):
        return mean ** (1 / p) * 0.99 + mean * 0.01


class FirstWindowThrice(Textbook):
    """The window of the first pixel of each image weighs three times as much."""

    def omega(self, s):
        return super().omega(s) * np.where((s.at[:, 1:] == 0).all(1), 3, 1).astype(s.dtype)


class SquaredTarget(Textbook):
    """The smoothed target is squared, the one-hot one too, which changes nothing."""

    def target(self, s):
        return super().target(s) ** 2


class CubedUpstream(Textbook):
    """The third power of the upstream gradient: its sign is right, and so it is where it is 1."""

    def upstream(self, g_out, s):
        return g_out**3


class ClassesExchanged(Textbook):
    """The logits of the first two classes are exchanged."""

    def layout(self, shape, axis):
        at = super().layout(shape, axis)
        return at[:, [1, 0, *range(2, at.shape[1])]] if at.shape[1] > 1 else at


UNKNOWN = [InverseSquare, QuadraticExtra, BlurredBackward, ClippedGradient, MixedRoot]
UNKNOWN += [FirstWindowThrice, SquaredTarget, CubedUpstream, ClassesExchanged]


@pytest.mark.parametrize("form", UNKNOWN)
def test_a_mistake_that_is_not_in_the_catalogue_gets_no_name(form):
    found = diagnose(observed(form(), dtypes=["float64"]), thorough=False)
    assert found.findings == []
    assert found.summary.startswith("No mistake of the catalogue")
    assert "The smallest case with a wrong" in found.summary


@pytest.mark.parametrize("number", [0.0, 1.0, math.nan])
@pytest.mark.parametrize("quick", [True, False])
def test_a_function_that_is_not_written_yet_gets_no_name(number, quick):
    """No two mistakes that together give 0 are told of one who gives 0 for everything."""

    def f(logits, labels):
        return number, np.full_like(logits, number)

    found = verify(f, dtype="float64", quick=quick).diagnosis
    assert found.findings == []
    assert f"Every wrong value is {number:g}. Every wrong gradient is {number:g}." in found.summary


@pytest.mark.parametrize("port", [textbook, array_engine, *(e.form() for e in EQUIVALENT)])
def test_what_is_right_gets_no_diagnosis(port):
    found = diagnose(observed(port))
    assert found.findings == []
    assert found.summary == ""


class LogOfSoftmax(Textbook):
    """The logarithm of a softmax that has rounded to 0: it overflows where exp of raw logits would, and is not it."""

    def log_softmax(self, z, s):
        return log(exp(super().log_softmax(z, s)))


@pytest.mark.parametrize("quick", [True, False])
def test_infinity_is_no_evidence(quick):
    f = LogOfSoftmax()
    keep = (lambda case: case.quick) if quick else (lambda case: True)
    seen = observed(f, keep=keep)
    wrong = [each for each in seen if each.wrong]
    assert wrong
    assert not any(each.telling for each in wrong)
    assert names(f, keep=keep) == []
    assert diagnose(seen).findings == []  # nor where it can't be asked again
    assert names(BY_ID["exp-without-the-maximum"].subject(), keep=keep) == ["exp-without-the-maximum"]


def test_an_answer_that_is_only_a_little_off_is_not_explained_by_something_near():
    case, right = BY_NAME["plain"], golden.load()["plain"]
    off = right.value[0] * (1 + 40 * np.finfo("float32").eps)
    seen = [Observed(case, "float32", Answer(np.asarray(off), right.grad[0]), right)]
    assert seen[0].value_off < AGREES  # 40 eps is still within what this case's value may be off
    assert diagnose(seen).findings == []


def test_answers_of_a_wrong_shape_are_no_obstacle():
    def f(x, y, **o):
        value, grad = BY_ID["square-root"].subject()(x, y, **o)
        return np.reshape(value, (1, *np.shape(value))), grad

    report = verify(f, quick=True, dtype="float64")
    assert report.verdict == "wrong"
    assert report.diagnosis.findings == []


# ---- where it is, when it has no name


@functools.cache
def unnamed(form, ask=False):
    f = form()
    return diagnose(observed(f, dtypes=["float64"]), asker(f) if ask else None, thorough=False)


def summary(form, ask=False):
    return unnamed(form, ask).summary


def test_another_loss_with_its_own_gradient_is_told_so():
    text = summary(InverseSquare, ask=True)
    assert "Your gradient matches your forward, but your forward is another loss." in text
    assert "stage 1, pooling" in text
    assert "another loss" not in summary(BlurredBackward, ask=True)
    assert "Your gradient is not that of your own loss." in summary(BlurredBackward, ask=True)
    assert unnamed(InverseSquare, ask=True).consistent is True  # for machines: `Report.to_dict` has it
    assert unnamed(BlurredBackward, ask=True).consistent is False


def test_a_right_loss_with_a_wrong_gradient_is_not_consistent_however_well_one_direction_agrees():
    class Centred(Textbook):
        """Its gradient sums to 0 in each class: many directions are blind to that."""

        def finish(self, x_bar, g, s):
            return (x_bar - x_bar.mean(0)).astype(s.dtype)

    report = verify(Centred(), dtype="float64", quick=True).to_dict()
    assert (report["verdict"], report["diagnosis"], report["consistent"]) == ("wrong", [], False)
    assert "Your gradient is not that of your own loss." in report["summary"]


def test_another_loss_is_told_so_in_a_verdict_and_its_json():
    report = verify(InverseSquare(), dtype="float64", quick=True).to_dict()
    assert (report["verdict"], report["diagnosis"], report["consistent"]) == ("wrong", [], True)
    assert "Your gradient matches your forward, but your forward is another loss." in report["summary"]


def test_the_first_stage_that_differs_is_told():
    assert "All values are right: the mistake is in the backward." in summary(ClippedGradient)
    assert "stage 3, Minkowski pooling" not in summary(QuadraticExtra, ask=True)
    assert "stage 2, cross-entropy" in summary(QuadraticExtra, ask=True)
    assert '"one-pixel" (logits 1 by 3 by 1 by 1)' in summary(QuadraticExtra)

    class OffWithSmoothing(Textbook):
        def target(self, s):
            return super().target(s) ** 2 if s.o["label_smoothing"] else super().target(s)

    assert "It is wrong only where label_smoothing is not at its default." in summary(OffWithSmoothing)
