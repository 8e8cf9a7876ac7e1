"""Behaviour from call to call: each check is shown a subject that answers every case rightly and yet fails it."""

import dataclasses

import numpy as np
import pytest

import lalref
from lalref import oracle
from lalref.oracle import golden, large, protocol
from lalref.oracle.cases import BY_NAME
from lalref.oracle.judge import judge, measure
from lalref.oracle.mistakes import Textbook
from lalref.oracle.subjects import Subject

textbook = Textbook()
ASKED = {
    name: (BY_NAME[name], golden.load()[name])
    for name in (protocol.BASE, protocol.OTHER, *protocol.WITH_ARRAYS)
}


def rows(f, **options):
    """What the quick checks say of a subject: outcome by name."""
    found = protocol.check(Subject(f), "float32", ASKED, [], quick=True, **options)
    return {row.name: row.outcome for row in found}


def differing(f):
    """Names of the checks that differ."""
    return {name for name, outcome in rows(f).items() if outcome == "differs"}


def test_an_honest_subject_holds_everywhere():
    assert set(rows(textbook).values()) == {"holds"}
    assert len(rows(textbook)) >= 10


def test_the_gradient_added_to_what_the_last_call_left_is_noticed():
    left = {}

    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        grad = grad + left.get(id(labels), 0)
        left[id(labels)] = grad
        return value, grad

    assert "called twice" in differing(f)


def test_an_answer_kept_from_another_input_of_the_same_shape_is_noticed():
    kept = {}

    def f(logits, labels, **options):
        return kept.setdefault((logits.shape, repr(options)), textbook(logits, labels, **options))

    assert "called twice" in differing(f)


def test_another_answer_on_every_call_is_noticed_but_decides_only_under_strict():
    calls = []

    def f(logits, labels, **options):
        calls.append(1)
        value, grad = textbook(logits, labels, **options)
        return value, grad * np.float32(1 + 2e-7 * (len(calls) % 3))

    assert differing(f) == {"same bits again"}
    row = next(
        r for r in protocol.check(Subject(f), "float32", ASKED, [], quick=True) if r.outcome == "differs"
    )
    assert row.decides(strict=True)
    assert not row.decides(strict=False)


def test_writing_to_an_input_is_noticed():
    def f(logits, labels, **options):
        answer = textbook(logits, labels, **options)
        logits[...] = 0
        return answer

    assert "inputs unchanged" in differing(f)


@pytest.mark.parametrize(
    ("wrong", "noticed_at"),
    [
        (lambda g: 1.0, {"0", "-0.5", "1.70312", "65504"}),
        (lambda g: abs(g), {"-0.5"}),
        (lambda g: g * g, {"-0.5", "1.70312", "65504"}),
        (lambda g: min(g, 1000.0), {"65504"}),
    ],
    ids=["ignored", "absolute", "squared", "clipped"],
)
def test_an_upstream_gradient_that_does_not_scale_is_noticed(wrong, noticed_at):
    def f(logits, labels, *, grad_output=1.0):
        return textbook(logits, labels, grad_output=wrong(grad_output))

    found = protocol.check(Subject(f), "float32", {protocol.BASE: ASKED[protocol.BASE]}, [], quick=True)
    assert {r.name for r in found if r.outcome == "differs"} == {f"upstream gradient {g}" for g in noticed_at}


def test_the_right_gradient_under_another_upstream_is_exact():
    case, right = ASKED[protocol.BASE]
    scaled, _, _, found = protocol.upstreamed(case, right, 1.703125, "float64")
    np.testing.assert_array_equal(found.grad[0], golden.make(scaled).grad[0])


def test_a_subject_without_an_upstream_gradient_is_told_so():
    def f(logits, labels):
        return textbook(logits, labels)

    assert rows(f)["upstream gradients"] == "unsupported"


@pytest.mark.parametrize(
    ("layout", "as_if_contiguous"),
    [
        ("every second element", lambda a: a.base.ravel()[: a.size].reshape(a.shape)),
        ("reversed", lambda a: np.ascontiguousarray(a[::-1, ::-1, ::-1, ::-1])),
        ("class axis innermost", lambda a: a.ravel("K").reshape(a.shape)),
    ],
)
def test_a_subject_that_reads_memory_as_if_it_were_contiguous_is_noticed(layout, as_if_contiguous):
    def f(logits, labels, **options):
        if not logits.flags["C_CONTIGUOUS"]:
            logits = as_if_contiguous(logits)
        return textbook(logits, labels, **options)

    assert f"arrays in memory: {layout}" in differing(f)


def test_raising_on_a_view_is_noticed():
    def f(logits, labels, **options):
        logits.reshape(-1).data.cast("B")
        assert logits.flags["C_CONTIGUOUS"], "not contiguous"
        return textbook(logits, labels, **options)

    assert differing(f) == {f"arrays in memory: {layout}" for layout in Subject(f).layouts}


def test_a_failed_check_makes_the_verdict_wrong_and_is_named():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return value, grad if logits.flags["C_CONTIGUOUS"] else -grad

    report = oracle.verify(f, quick=True)
    assert report.verdict == "wrong"
    assert "arrays in memory: reversed" in report.reason
    assert "but these checks differ" in report.reason


def test_a_few_checks_are_cases_of_the_table():
    report = oracle.verify(textbook)
    found = {row.name: row for row in report.protocol}
    assert set(protocol.CASES_THAT_SHOW) <= set(found)
    assert found["nearly perfect predictions"].outcome == "differs"  # beyond the textbook
    assert report.verdict == "right"


# ---- large images


def test_a_repeated_case_has_the_answer_that_truth_gives():
    """On a canvas small enough for truth itself, with strides, counted members and channels last."""
    options = {"stride": 2, "normalize": "count", "axis": -1, "kernel_size": 3}
    case = BY_NAME["small-image"].refitted(options)
    tiled = large.tile(case, golden.make(case), "float64", 11)
    truth = golden.make(tiled.case)
    assert tiled.copies >= 2
    np.testing.assert_allclose(tiled.right.value[0], truth.value[0], rtol=1e-15)
    np.testing.assert_allclose(tiled.right.grad[0], truth.grad[0], rtol=1e-14, atol=1e-30)


def linear(logits, labels):
    """A right subject that takes time in proportion to the pixels."""
    return lalref.lal_value_and_grad(logits, labels, engine="array")


def test_a_linear_subject_is_asked_at_a_large_size(monkeypatch):
    monkeypatch.setattr(large, "SIZES", (321,))
    case, right = ASKED[protocol.BASE]
    ((name, outcome, note),) = large.check(Subject(linear), case, right, "float32")
    assert (name, outcome) == ("an image of 321 by 321 pixels", "holds")
    assert "held against the golden case 'scattered-void'" in note


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.4])
@pytest.mark.parametrize("size", large.SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_zeroed_negated_or_shrunken_gradient_of_a_large_image_is_refused(factor, size, dtype):
    case, right = ASKED[protocol.BASE]
    tiled = large.tile(case, right, dtype, size)
    for scale, outcome in [(1.0, "holds"), (factor, "differs")]:
        answer = oracle.subjects.Answer(tiled.right.value[0], scale * tiled.right.grad[0])
        assert measure(answer, tiled.case, dtype, "", tiled.right, tiled.unit)[0].outcome == outcome


def test_a_subject_that_fails_only_on_large_images_is_wrong(monkeypatch):
    monkeypatch.setattr(large, "SIZES", (130,))

    def f(logits, labels):
        value, grad = linear(logits, labels)
        return value, grad * (logits.size < 40_000)

    case, right = ASKED[protocol.BASE]
    assert judge(Subject(f), case, "float32", "", right)[0].outcome == "holds"
    assert [row[1] for row in large.check(Subject(f), case, right, "float32")] == ["differs"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [None, 0.0, -1.0], ids=["right", "zeroed", "negated"])
def test_a_million_pixels_are_put_to_a_real_subject(lost):
    """A gradient that is lost at 1024 by 1024 pixels, where a mean makes it tiny, and nowhere else is refused there."""

    def f(logits, labels):
        value, grad = lalref.lal_value_and_grad(logits, labels)
        return value, grad if lost is None or labels.size < 1024**2 else lost * grad

    case, right = ASKED[protocol.BASE]
    rows = large.check(Subject(f), case, right, "float32")
    assert [(name, outcome) for name, outcome, _ in rows] == [
        ("an image of 321 by 321 pixels", "holds"),
        ("an image of 1024 by 1024 pixels", "holds" if lost is None else "differs"),
    ]


def test_a_subject_that_grows_with_the_square_of_the_pixels_is_spared():
    assert large._too_much([(289, 0.001, 0), (1089, 0.004, 0)], 321) == ""
    assert "would take" in large._too_much([(1089, 0.01, 0), (2401, 0.06, 0)], 321)
    assert "GiB" in large._too_much([(1089, 0.01, 2e7), (2401, 0.01, 2**40)], 321)


def test_what_is_built_in_may_forbid_large_images():
    case, right = ASKED[protocol.BASE]
    for change in ({"reduction": "sum"}, {"ignore_index": None}):
        changed = dataclasses.replace(case, options=change)
        assert large.tile(changed, right, "float32", 321) is None
