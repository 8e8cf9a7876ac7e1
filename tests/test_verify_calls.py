"""What a subject is given and may do, and what is said to one that can't be asked."""

import warnings

import numpy as np
import pytest

from lalref import oracle
from lalref.oracle.mistakes import Textbook

textbook = Textbook()


def test_inputs_are_fresh_and_writing_to_them_is_wrong():
    def f(logits, labels, *, pixel_weight=None, **options):
        answer = textbook(logits, labels, pixel_weight=pixel_weight, **options)
        labels[:] = 0
        if pixel_weight is not None:
            pixel_weight[:] = 1
        return answer

    report = oracle.verify(f)
    notes = {r.name: r.note for r in report.results}
    assert report.verdict == "wrong"
    assert notes["plain"] == "wrote to its input labels"
    assert notes["pixel-weight"] == "wrote to its input labels and pixel_weight"
    assert report.units <= 1  # the next call was given fresh arrays
    assert oracle.verify(textbook).verdict == "right"


def test_warnings_are_no_verdict():
    def f(logits, labels, **options):
        warnings.warn("by the way", UserWarning, stacklevel=1)
        np.log(np.zeros(1))
        return textbook(logits, labels, **options)

    assert oracle.verify(f, quick=True).verdict == "right"


def test_a_shape_that_does_not_fit_is_told():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return np.reshape(value, (1, *np.shape(value))), grad

    report = oracle.verify(f, quick=True)
    assert report.verdict == "wrong"
    assert report.results[0].note == "value of shape (1,), expected ()"


def test_values_may_be_python_floats_and_lists():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return [float(value) if np.ndim(value) == 0 else value.tolist(), grad.tolist()]

    assert oracle.verify(f, dtype="float64").verdict == "right"


def test_progress_sees_every_run():
    seen = []

    def progress(runs):
        for run in runs:
            seen.append(run)
            yield run

    report = oracle.verify(textbook, quick=True, progress=progress)
    assert len(seen) == len(report.results) > 0


def takes_one(logits):
    """Not enough."""


def needs_more(logits, labels, temperature):
    """An argument that is no option."""


USAGE = {
    "not callable": ((3,), {}, "expected a function f.logits, labels, ..options., got int: 3"),
    "one argument": ((takes_one,), {}, "takes_one takes 1 positional"),
    "strange argument": ((needs_more,), {}, "needs_more needs temperature, which is no option"),
    "framework": (
        (textbook,),
        {"framework": "theano"},
        "framework='theano' is not known: it is one of numpy",
    ),
    "dtype": ((textbook,), {"dtype": "float8"}, "dtype='float8' is not known: it is one of float32"),
    "fixed misspelt": ((textbook,), {"fixed": {"sgima": 2}}, "did you mean sigma=?"),
    "fixed unknown": ((textbook,), {"fixed": {"gamma": 2}}, "fixed names 'gamma', which is no option"),
    "fixed not allowed": (
        (lambda x, y: (0.0, x),),
        {"fixed": {"kernel_size": 4}},
        "kernel_size=4 is not allowed",
    ),
    "fixed of a call": (
        (lambda x, y: (0.0, x),),
        {"fixed": {"grad_output": 2}},
        "fixed names 'grad_output', which belongs to a call and not to the loss",
    ),
    "fixed taken": ((textbook,), {"fixed": {"sigma": 2}}, "takes sigma as an argument"),
    "returns value": ((lambda x, y: 1.0,), {}, "'plain', returned a float; a numpy subject returns a tuple"),
    "returns three": ((lambda x, y: (1, 2, 3),), {}, "returned a tuple of 3"),
    "returns words": (
        (lambda x, y: ("1.5", x),),
        {},
        "returned a str as the value .dtype <U3.; expected an array of real numbers",
    ),
    "returns complex": ((lambda x, y: (1.0, x + 1j),), {}, "as the gradient .dtype complex"),
}


@pytest.mark.parametrize("key", USAGE)
def test_a_subject_that_cannot_be_asked_is_told_what_is_expected(key):
    arguments, options, message = USAGE[key]
    with pytest.raises(oracle.UsageError, match=message):
        oracle.verify(*arguments, **options)
    assert issubclass(oracle.UsageError, ValueError)
