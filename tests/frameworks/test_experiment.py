"""The experiment on digits: its scenes, its scores, and a small slice of all of it, killed and gone on with."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from experiments.digits import report, runs
from experiments.digits.metrics import boundary_f, confusion, iou
from experiments.digits.models import unet
from experiments.digits.runs import OtherSettings, Score, read_results, run_all
from experiments.digits.scenes import DIGITS, PHOTOGRAPHS, VOID, digits, make_scenes
from experiments.digits.training import METHODS, Method, Settings

SLICE = Settings(
    size=32,
    unet_scenes=8,
    linear_scenes=2,
    validation_scenes=2,
    test_scenes=6,
    steps=2,
    batch=2,
    widths=(4, 8),
    rates=(1e-3, 1e-2),
    iterations=2,
    seeds=(0, 1),
)


# ---- scenes ---------------------------------------------------------------------------------------


def test_the_splits_share_neither_a_digit_nor_a_photograph():
    names = [name for split in PHOTOGRAPHS.values() for name in split]
    assert len(set(names)) == len(names)
    shares = sorted(DIGITS.values())
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(shares))
    images = [image.tobytes() for split in DIGITS for image in digits(split)[0]]
    assert len(images) == 1797
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("split", DIGITS)
def test_each_digit_has_a_void_rim_of_one_pixel(split):
    made = make_scenes(split, 5)
    assert set(np.unique(made.full)) <= set(range(11))
    kept = made.labels != VOID
    np.testing.assert_array_equal(made.labels[kept], made.full[kept])
    for labels in made.labels:  # across a border there is always void: background never touches a digit
        for a, b in [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]:
            touching = (a != b) & (a != VOID) & (b != VOID)
            assert not (touching & ((a == 0) | (b == 0))).any()
    assert 0 < np.mean(made.labels == VOID) < 0.2


def test_the_same_arguments_give_the_same_scenes_and_other_seeds_others():
    a, b, c = (make_scenes("train", 2, seed=seed).images for seed in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


# ---- scores ---------------------------------------------------------------------------------------


def test_iou_by_hand_with_void_left_out():
    counts = confusion(np.array([0, 0, 1, 1, VOID]), np.array([0, 1, 1, 1, 0]), 3)
    np.testing.assert_allclose(iou(counts), [1 / 2, 2 / 3, np.nan])


def square(top, left, size=8, extent=24, classes=1):
    labels = np.zeros((1, extent, extent), np.uint8)
    labels[0, top : top + size, left : left + size] = classes
    return labels


def test_the_boundary_score_forgives_one_pixel_and_no_more():
    truth = square(8, 8)
    assert boundary_f(truth, truth, 3) == 1
    assert boundary_f(truth, square(9, 9), 3) == 1
    assert 0 < boundary_f(truth, square(10, 10), 3) < 1
    assert boundary_f(truth, square(8, 8, classes=2), 3) == 0  # the right line, of the wrong class
    assert boundary_f(truth, np.zeros_like(truth), 3) == 0
    filled, hollow = square(8, 8), square(8, 8)
    hollow[0, 11:13, 11:13] = 0  # a line that isn't there costs precision
    assert 0.7 < boundary_f(filled, hollow, 3) < 1


@pytest.mark.parametrize("extent", [(32, 32), (33, 17)])
def test_the_unet_gives_a_score_for_each_pixel_of_any_size(extent):
    import torch

    assert unet(5, 3, widths=(4, 8, 8))(torch.zeros(2, 3, *extent)).shape == (2, 5, *extent)


# ---- all of it ------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no line of the experiment catches."""


def quietly(folder, settings=SLICE):
    return run_all(folder, settings, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, quietly(folder)


def test_a_killed_experiment_goes_on_and_ends_with_the_same_results(whole, tmp_path, monkeypatch):
    score_run = runs.score_run
    done = []

    def killed_after(count):
        def scored(run, *rest):
            if len(done) == count:
                raise Killed
            done.append(run)
            return score_run(run, *rest)

        return scored

    for count in (5, 20):  # in the search, and in what follows
        monkeypatch.setattr(runs, "score_run", killed_after(count))
        with pytest.raises(Killed):
            quietly(tmp_path)
    monkeypatch.setattr(runs, "score_run", killed_after(None))
    quietly(tmp_path)
    assert len(done) == len(set(done)), "a run was done twice"
    for name in ("runs.csv", "settings.json", "masks-unet-ce.png", "masks-linear-k5-p5.png"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_lines_have_one_order_whenever_the_runs_were_made(whole, tmp_path):
    folder, results = whole
    shuffled = list(results.items())
    np.random.default_rng(0).shuffle(shuffled)
    runs.write_results(tmp_path, dict(shuffled))
    assert (tmp_path / "runs.csv").read_bytes() == (folder / "runs.csv").read_bytes()
    assert list(read_results(folder)) == [*runs.search_runs(SLICE), *runs.final_runs(SLICE, results)]


def test_every_loss_has_the_same_runs(whole):
    _, results = whole
    counts = {
        name: sorted((run.model, run.stage, run.seed) for run in results if run.method == name)
        for name in METHODS
    }
    assert all(each == counts["ce"] for each in counts.values())
    assert len(counts["ce"]) == len(SLICE.rates) + 2 * len(SLICE.seeds)
    assert read_results(whole[0]).keys() == results.keys()


def test_at_kernel_1_and_p_1_this_loss_trains_as_cross_entropy_does():
    """The comparison compares losses: nothing else differs between a run with torch's and one with lalref's."""
    from experiments.digits.training import train

    seen, longer = ("test", 6, SLICE.size, 0), dataclasses.replace(SLICE, steps=40)

    def trained(method):
        return train("unet", method, 1e-2, 0, longer)(seen)

    theirs = trained(METHODS["ce"])
    assert np.mean(trained(Method(1, 1.0)) == theirs) > 0.99
    assert np.mean(trained(Method(5, 5.0)) == theirs) < 0.99  # what another loss comes to


def test_results_of_other_settings_are_not_mixed(whole):
    with pytest.raises(OtherSettings, match="--results"):
        quietly(whole[0], Settings())


def test_the_report_is_made_from_the_results_alone(whole, tmp_path):
    page = tmp_path / "page.md"
    names = ["linear", "unet", "rates", "settings"]
    page.write_text("\n".join(f"<!-- table: {name} -->\nold\n<!-- end -->" for name in names))
    report.write_report(whole[0], page)
    text = page.read_text()
    assert "old" not in text
    mean = 100 * np.mean(
        [s.miou for r, s in whole[1].items() if (r.model, r.method, r.stage) == ("linear", "ce", "final")]
    )
    assert f"| cross-entropy | {mean:.1f} ±" in text
    assert report.filled_in(text, report.tables(whole[0])) == text
    assert {each.name for each in (tmp_path / "images").iterdir()} == {
        "experiment-masks.png",
        "experiment-scores.png",
    }
    with pytest.raises(ValueError, match="table: unet"):
        report.filled_in("a page without marks", {"unet": ""})


# ---- the comparison -------------------------------------------------------------------------------


def test_the_paired_test_sees_a_constant_gain_through_the_spread_of_seeds():
    spread = [0.1, 0.3, 0.5, 0.2, 0.4]
    results = {}
    for name in METHODS:
        for seed, base in enumerate(spread):
            wobble = 0.001 * (-1) ** seed
            gain = {"ce": 0.0, "k5-p5": 0.02 + wobble}.get(name, 5 * wobble)
            run = runs.Run("unet", name, "final", 1e-3, seed)
            results[run] = Score(base + gain, base + gain)
    rows = report.compared(results, "unet", "miou")
    mean, low, high, p = rows["k5-p5"]
    assert mean == pytest.approx(2.02)
    assert low < mean < high
    assert p < 0.01
    assert rows["k3-p5"][3] > 0.05


def test_holms_rule_by_hand():
    np.testing.assert_allclose(report.holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])
