"""Nobody who computes the loss honestly is accused, however they add up; and the run would notice if they were."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from lalref.oracle import false_alarms as module
from lalref.oracle.cases import BY_NAME
from lalref.oracle.false_alarms import draw, false_alarms
from lalref.oracle.honest import CHOICES, Honest, fused_multiply_add, variants
from lalref.oracle.inputs import eighths, mix


def test_500_honest_runs_give_no_false_alarm_and_stay_within_one_unit():
    found = false_alarms(500)
    assert found.alarms == (), str(found)
    assert found.worst.units <= 1, str(found)
    assert found.variants > 400


def test_no_run_is_made_twice_and_every_choice_meets_every_dtype():
    runs = draw(10_000)
    assert len({(variant, case.name, dtype) for variant, case, dtype in runs}) == 10_000
    assert len({case.name for _, case, _ in runs}) >= 60
    for kind, choices in CHOICES.items():
        met = {(getattr(variant, kind), dtype) for variant, _, dtype in runs}
        assert met == {(choice, dtype) for choice in choices for dtype in ("float32", "float64")}
    assert draw(100) == draw(100)


@pytest.mark.parametrize("kind", CHOICES)
def test_no_choice_is_another_one_under_a_new_name(kind):
    """Each gives other last digits than each other one, in some case, with some of the other choices."""

    def digits(choice):
        found = []
        for base in (
            Honest(),
            Honest(walk="shifts", order="forwards"),
            Honest(walk="windows", order="forwards"),
        ):
            for name in ("wide-range", "kernel-15", "p-2.5", "scattered-void", "probabilities", "smoothing"):
                case = BY_NAME[name]
                value, grad = dataclasses.replace(base, **{kind: choice})(
                    case.logits.astype(np.float32), case.labels, **case.arguments
                )
                found.append(value.tobytes() + grad.tobytes())
        return found

    found = {choice: digits(choice) for choice in CHOICES[kind]}
    for choice in found:
        for other in found:
            assert choice == other or found[choice] != found[other], (choice, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_multiply_add_rounds_once(dtype):
    a, b, c = ((mix((200,), k) / 2**31 - 1).astype(dtype) for k in (1, 2, 3))
    c = np.where(np.arange(200) % 2, c, -(a * b)).astype(dtype)  # where all digits of the product cancel, too
    found = fused_multiply_add(a, b, c)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)
    ]
    off = [abs(Fraction(float(f)) - e) for f, e in zip(found, exact, strict=True)]
    assert all(
        o <= Fraction(float(np.spacing(abs(f)))) * Fraction(51, 100) for f, o in zip(found, off, strict=True)
    )
    assert any(f != x * y + z for f, x, y, z in zip(found, a, b, c, strict=True))


def test_an_accusation_would_be_counted(monkeypatch):
    """With one variant among the honest that is not: its sigma is off by a hundredth."""

    class Dishonest(Honest):
        def __call__(self, logits, labels, *, sigma=1.0, **options):
            return super().__call__(logits, labels, sigma=1.01 * sigma, **options)

    every = list(variants())
    every[::10] = [Dishonest(**dataclasses.asdict(each)) for each in every[::10]]
    monkeypatch.setattr(module, "variants", lambda: iter(every))
    found = false_alarms(100)
    guilty = [f for f, _ in found.alarms]
    assert guilty
    assert all(isinstance(f, Dishonest) for f in guilty)
    assert f"{len(guilty)} false alarms in 100 runs" in str(found)
    assert str(found).count("ALARM: ") == len(guilty)


def test_a_number_of_runs_that_there_is_not_is_said():
    for runs in (0, -1, 10**9):
        with pytest.raises(ValueError, match="a number from 1 to"):
            draw(runs)


def test_an_upstream_gradient_map_and_an_empty_batch_are_answered():
    case = BY_NAME["none-upstream"]
    value, grad = Honest()(case.logits, case.labels, **case.arguments)
    assert value.shape == case.labels.shape
    assert grad.shape == case.logits.shape
    empty = BY_NAME["empty-nan"]
    value, grad = Honest()(empty.logits, empty.labels, **empty.arguments)
    assert math.isnan(value)
    np.testing.assert_array_equal(grad, 0 * eighths(empty.logits.shape, 1))
