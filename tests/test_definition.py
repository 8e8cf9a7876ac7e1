"""The definition against answers worked out by hand.

The hand-worked table is itself put on trial: each of a row of mistakes in the definition must change one
of its answers.
"""

import math

import numpy as np
import pytest

from lalref import definition
from lalref.definition import loss

INF, NAN = math.inf, math.nan
W1, W2 = math.exp(-0.5), math.exp(-2.0)  # w(1) and w(2) for sigma = 1


def two_class(score):
    """The loss of a pixel of class 0 whose logits are (score, 0)."""
    return math.log1p(math.exp(-score))


def sigmoid(score):
    return 1 / (1 + math.exp(-score))


def scores(*rows):
    """Logits (1, 2, *S) whose class 1 is 0 everywhere and class 0 is as given."""
    first = np.array(rows, float)
    return np.stack([first, 0 * first])[None]


PAIR = scores(2, 0)  # two pixels beside each other, (2, 0) and (0, 0)
BOTH = [[0, 0]]
Z0, Z1 = 2 / (1 + W1), 2 * W1 / (1 + W1)  # class 0 of their merged vectors; class 1 is 0
E0, E1 = two_class(Z0), two_class(Z1)
P1 = {"p": 1, "kernel_size": 3}
CORNER = scores([2, 0], [0, 0])  # the pixel diagonally across is a neighbour at chessboard distance 1
KNIGHT = scores([2, 0, 0], [0, 0, 0])
LINE = scores(3, 0, -1, 1)

# name, logits, labels, options, the answer in closed form
HAND = [
    ("one pixel", [[[1.5], [0.0]]], [[0]], {}, two_class(1.5)),
    ("one pixel, no axes", [[1.5, 0.0]], [0], {}, two_class(1.5)),
    ("three classes", [[0.0, 1.0, -1.0]], [1], {}, math.log(1 + math.exp(-1) + math.exp(-2))),
    ("two pixels averaged", PAIR, BOTH, P1, (E0 + E1) / 2),
    ("sigma is no distance", PAIR, BOTH, {**P1, "sigma": None}, two_class(1)),
    ("sigma 2", PAIR, BOTH, {**P1, "sigma": 2, "reduction": "sum"},
     two_class(2 / (1 + math.exp(-1 / 8))) + two_class(2 * math.exp(-1 / 8) / (1 + math.exp(-1 / 8)))),
    ("the other class is not averaged", PAIR, [[0, 1]], P1, (two_class(2) + math.log(2)) / 2),
    ("divided by the count", PAIR, BOTH, {**P1, "normalize": "count"}, (two_class(1) + two_class(W1)) / 2),
    ("probabilities", PAIR, BOTH, {**P1, "space": "probabilities"},
     -(math.log((sigmoid(2) + W1 / 2) / (1 + W1)) + math.log((sigmoid(2) * W1 + 0.5) / (1 + W1))) / 2),
    ("probabilities by the count", PAIR, BOTH, {**P1, "space": "probabilities", "normalize": "count"},
     -(math.log((sigmoid(2) + W1 / 2) / 2) + math.log((sigmoid(2) * W1 + 0.5) / 2)) / 2),
    ("smoothing 0.2", [[[1.5], [0.0]]], [[0]], {"label_smoothing": 0.2},
     0.9 * two_class(1.5) + 0.1 * two_class(-1.5)),
    ("smoothing 1", [[[1.5], [0.0]]], [[1]], {"label_smoothing": 1.0},
     0.5 * two_class(1.5) + 0.5 * two_class(-1.5)),
    ("p = 1, sum", PAIR, BOTH, {**P1, "reduction": "sum"}, E0 + E1),
    ("p = 5", PAIR, BOTH, {"kernel_size": 3}, ((E0**5 + E1**5) / 2) ** (1 / 5)),
    ("p = 5, sum", PAIR, BOTH, {"kernel_size": 3, "reduction": "sum"}, (E0**5 + E1**5) ** (1 / 5)),
    ("p = 2.5", PAIR, BOTH, {"kernel_size": 3, "p": 2.5}, ((E0**2.5 + E1**2.5) / 2) ** (1 / 2.5)),
    ("p = inf", PAIR, BOTH, {"kernel_size": 3, "p": INF}, E1),
    ("p = inf, sum", PAIR, BOTH, {"kernel_size": 3, "p": INF, "reduction": "sum"}, E1),
    ("the mean is over the batch", np.concatenate([PAIR, 0 * PAIR]), BOTH * 2, {"kernel_size": 3, "p": 2},
     math.sqrt((E0**2 + E1**2 + 2 * math.log(2) ** 2) / 4)),
    ("class weights", PAIR, [[0, 1]], {**P1, "class_weight": [3.0, 0.5]},
     (3 * two_class(2) + 0.5 * math.log(2)) / 3.5),
    ("class weights, p = 2", PAIR, [[0, 1]], {"kernel_size": 1, "p": 2, "class_weight": [3.0, 0.5]},
     math.sqrt((3 * two_class(2) ** 2 + 0.5 * math.log(2) ** 2) / 3.5)),
    ("pixel weights", PAIR, BOTH, {**P1, "pixel_weight": [[3.0, 0.5]]}, (3 * E0 + 0.5 * E1) / 3.5),
    ("both weights", PAIR, [[0, 1]], {**P1, "class_weight": [1, 4], "pixel_weight": [[3.0, 0.5]]},
     (3 * two_class(2) + 2 * math.log(2)) / 5),
    ("weight 0 is no window but still a neighbour", PAIR, BOTH, {**P1, "pixel_weight": [[1.0, 0.0]]}, E0),
    ("an ignored pixel is neither", PAIR, [[0, 255]], P1, two_class(2)),
    ("ignored are -1 and 7", LINE, [[0, -1, 7, 0]], {"p": 1, "ignore_index": (-1, 7)},
     (two_class(3) + two_class(1)) / 2),
    ("nothing is ignored", PAIR, BOTH, {**P1, "ignore_index": None}, (E0 + E1) / 2),
    ("a class may be ignored", PAIR, [[0, 1]], {**P1, "ignore_index": 0}, math.log(2)),
    ("diagonal neighbours are at distance 1", CORNER, [[[0, 1], [1, 0]]], {**P1, "class_weight": [1, 0]},
     (E0 + E1) / 2),
    ("a knight's move is at distance 2", KNIGHT, [[[0, 1, 1], [1, 1, 0]]],
     {"p": 1, "kernel_size": 5, "class_weight": [1, 0]},
     (two_class(2 / (1 + W2)) + two_class(2 * W2 / (1 + W2))) / 2),
    ("a kernel per axis", KNIGHT, [[[0, 1, 1], [1, 1, 0]]],
     {"p": 1, "kernel_size": (5, 3), "class_weight": [1, 0]}, (two_class(2) + math.log(2)) / 2),
    ("a kernel larger than the image", PAIR, BOTH, {"p": 1, "kernel_size": 99}, (E0 + E1) / 2),
    ("stride 2", LINE, [[0] * 4], {**P1, "stride": 2},
     (two_class(3 / (1 + W1)) + two_class((-1 + W1) / (1 + 2 * W1))) / 2),
    ("stride 3, the last on the border", LINE, [[0] * 4], {"p": 1, "kernel_size": 1, "stride": 3},
     (two_class(3) + two_class(1)) / 2),
    ("a stride per axis", CORNER, [[[0, 0], [0, 0]]], {"p": 1, "kernel_size": 1, "stride": (2, 1)},
     (two_class(2) + math.log(2)) / 2),
    ("a weight that rounds to 0 still counts", scores(2, NAN), BOTH,
     {**P1, "sigma": 0.02, "normalize": "count", "pixel_weight": [[1, 0]]}, two_class(1)),
    ("logits of 1000", [[[-1000.0], [1000.0]]], [[0]], {}, 2000.0),
    ("probabilities at logits of 1000", [[[-1000.0], [1000.0]]], [[0]], {"space": "probabilities"}, 2000.0),
    ("one class", [[[3.0]]], [[0]], {}, 0.0),
    ("one class, divided by the count", np.ones((1, 1, 2)), BOTH,
     {**P1, "space": "probabilities", "normalize": "count"}, -math.log((1 + W1) / 2)),
]  # fmt: skip


def misses():
    """Names of the hand-worked answers that the definition does not give."""

    def gives(logits, labels, options, answer):
        try:
            return math.isclose(loss(logits, labels, **options), answer, rel_tol=1e-13, abs_tol=0)
        except (TypeError, ArithmeticError):
            return False

    return [name for name, *question in HAND if not gives(*question)]


@pytest.mark.parametrize(
    ("logits", "labels", "options", "answer"), [h[1:] for h in HAND], ids=[h[0] for h in HAND]
)
def test_answers_worked_out_by_hand(logits, labels, options, answer):
    assert loss(logits, labels, **options) == pytest.approx(answer, rel=1e-13, abs=0)


def _radius_too_large(original):
    return lambda p, y, shape, radii: original(p, y, shape, tuple(r + 1 for r in radii))


def _minkowski(**changes):
    def patch(original):
        def wrong(losses, weights, *, p, reduction):
            kept = {"losses": losses, "weights": weights, "p": p, "reduction": reduction}
            kept.update({name: change(kept) for name, change in changes.items()})
            return original(kept["losses"], kept["weights"], p=kept["p"], reduction=kept["reduction"])

        return wrong

    return patch


MISTAKES = {  # name: (function of the definition, what it is replaced by, given the right one)
    "distance is Manhattan": ("distance", lambda f: lambda p, q: sum(map(lambda a, b: abs(a - b), p, q))),
    "distance is Euclidean": ("distance", lambda f: lambda p, q: math.dist(p, q)),
    "weight without the half": ("weight", lambda f: lambda d, sigma, one: f(d * math.sqrt(2), sigma, one)),
    "weight of d, not d squared": ("weight", lambda f: lambda d, s, one: f(math.sqrt(d), s, one)),
    "weight 1": ("weight", lambda f: lambda d, sigma, one: one),
    "sigma is a variance": ("weight", lambda f: lambda d, s, one: f(d, s and math.sqrt(s), one)),
    "the group does not look at labels": (
        "group", lambda f: lambda p, y, shape, radii: f(p, dict.fromkeys(y, 0), shape, radii)),
    "the group leaves out its own pixel": (
        "group", lambda f: lambda p, y, shape, radii: [q for q in f(p, y, shape, radii) if q != p] or [p]),
    "radius one too large": ("group", _radius_too_large),
    "only smaller neighbours": ("group", lambda f: lambda p, *rest: [q for q in f(p, *rest) if q <= p]),
    "members of weight 0 are read": ("reads", lambda f: lambda d, sigma: True),
    "always divided by the count": (
        "window", lambda f: lambda p, label, m, s, n, one: f(p, label, m, s, "count", one)),
    "always divided by the weights": (
        "window", lambda f: lambda p, label, m, s, n, one: f(p, label, m, s, "weights", one)),
    "stride forgotten": ("grid", lambda f: lambda shape, strides: f(shape, (1,) * len(shape))),
    "class weights forgotten": ("window_weight", lambda f: lambda y, ign, cw, pw: f(y, ign, None, pw)),
    "pixel weights forgotten": ("window_weight", lambda f: lambda label, ign, cw, pw: f(label, ign, cw, 1)),
    "ignored are counted": ("window_weight", lambda f: lambda label, ign, cw, pw: f(label, (), cw, pw)),
    "softmax without the shift": (
        "log_softmax", lambda f: lambda z: [c - math.log(sum(map(_exp, z))) for c in z]),
    "smoothing forgotten": ("loss_of_vector", lambda f: lambda z, y, alpha, one: f(z, y, 0.0, one)),
    "smoothing over the others only": (
        "loss_of_vector", lambda f: lambda z, y, a, one: f(z, y, a * len(z) / max(len(z) - 1, 1), one)),
    "mean of logs of probabilities": (
        "loss_of_probabilities",
        lambda f: lambda win, lu: -sum(u * w for u, (_, w) in zip(lu, win.read, strict=True)) / win.D),
    "sum for mean": ("minkowski", _minkowski(reduction=lambda k: "sum")),
    "mean for sum": ("minkowski", _minkowski(reduction=lambda k: "mean")),
    "mean over the count": ("minkowski", _minkowski(weights=lambda k: [1] * len(k["weights"]))),
    "p one too large": ("minkowski", _minkowski(p=lambda k: k["p"] + 1)),
    "p twice": ("minkowski", _minkowski(p=lambda k: 2 * k["p"])),
    "no p": ("minkowski", _minkowski(p=lambda k: 1)),
    "no root": ("root", lambda f: lambda x, p: x),
    "weights inside the power": (
        "minkowski",
        _minkowski(losses=lambda k: [e * w for e, w in zip(k["losses"], k["weights"], strict=True)])),
}  # fmt: skip


def _exp(x):
    return math.exp(x) if x < 700 else INF


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_table_by_hand_catches(mistake, monkeypatch):
    name, replace = MISTAKES[mistake]
    assert not misses()
    monkeypatch.setattr(definition, name, replace(getattr(definition, name)))
    assert misses()


def test_map_of_reduction_none():
    logits, labels = np.concatenate([LINE, LINE]), [[0, 255, 0, 0], [255] * 4]
    options = {"kernel_size": 1, "stride": 2, "reduction": "none", "p": 3, "class_weight": [2.0, 1.0]}
    answer = [[2 * two_class(3), 2 * two_class(-1)], [0, 0]]
    assert np.array(loss(logits, labels, **options)) == pytest.approx(np.array(answer), rel=1e-14)


# ---- numbers without a value, and windows without a loss ------------------------------------------


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("own", "neighbour", "label", "answer"),
    [
        ((NAN, 1.0), (0.0, 0.0), 0, NAN),  # NaN in the group
        ((1.0, NAN), (0.0, 0.0), 0, NAN),
        ((0.0, 0.0), (NAN, 0.0), 0, NAN),
        ((INF, 1.0), (0.0, 0.0), 0, NAN),  # +inf
        ((1.0, INF), (0.0, 0.0), 0, NAN),
        ((-INF, -INF), (0.0, 0.0), 0, NAN),  # every class -inf
        ((1.0, -INF), (0.0, -INF), 0, 0.0),  # an excluded class
        ((-INF, 1.0), (-INF, 0.0), 0, INF),  # excluded, and it was the truth
        ((0.0, 0.0), (NAN, INF), 1, math.log(2)),  # another class's pixel is never read
        ((0.0, 0.0), (NAN, INF), 255, math.log(2)),  # an ignored one neither
    ],
)
def test_specials_follow_ieee_arithmetic(space, own, neighbour, label, answer):
    logits = np.array([own, neighbour]).T[None]  # (1, 2, 2)
    options = {"kernel_size": 3, "space": space, "pixel_weight": [[1.0, 0.0]]}
    assert loss(logits, [[0, label]], **options) == pytest.approx(answer, nan_ok=True)


def test_inf_and_nan_reach_the_pooled_value_whatever_the_order():
    bad = [[-INF, 0.0], [NAN, 0.0], [0.0, 0.0]]
    for p in (1, 5, INF):
        for x, answer in (([bad[0], bad[2]], INF), (bad, NAN), (bad[::-1], NAN)):
            assert loss(x, [0] * len(x), p=p) == pytest.approx(answer, nan_ok=True)


def test_smoothing_counts_an_excluded_class():
    assert loss([[1.0, -INF]], [0], label_smoothing=0.1) == INF


def test_a_label_that_is_no_class_gives_nan_and_reads_no_table():
    assert math.isnan(loss(PAIR, [[0, 7]], class_weight=[1.0, 2.0]))
    assert math.isnan(loss(PAIR, [[0, -3]], space="probabilities"))
    (row,) = loss(PAIR, [[0, 7]], reduction="none")
    assert row[0] == pytest.approx(two_class(2))
    assert math.isnan(row[1])


def test_no_valid_window():
    assert loss(PAIR, [[255, 255]]) == 0
    assert math.isnan(loss(PAIR, [[255, 255]], empty="nan"))
    assert loss(PAIR, [[255, 255]], empty="nan", reduction="none") == [[0, 0]]
    assert loss(np.zeros((0, 2, 4)), np.zeros((0, 4), int)) == 0
    assert loss(np.zeros((1, 2, 0)), np.zeros((1, 0), int)) == 0
    with pytest.raises(ValueError, match="no valid window"):
        loss(PAIR, [[255, 255]], empty="raise")


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([[0, 0, 0]], {}),
        (BOTH, {"space": "softmax"}),
        (BOTH, {"normalize": "sum"}),
        (BOTH, {"reduction": "max"}),
        (BOTH, {"empty": "ignore"}),
        (BOTH, {"space": "probabilities", "label_smoothing": 0.1}),
    ],
)
def test_what_has_no_meaning_is_refused(labels, options):
    with pytest.raises(ValueError, match=r"\(1, 2\)|softmax|sum|max|ignore|label_smoothing"):
        loss(PAIR, labels, **options)
