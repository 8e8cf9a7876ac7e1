"""docs/experiment.md says what the committed results say. Nothing is trained here."""

import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image

from experiments.digits import report, runs
from experiments.digits.scenes import CLASSES
from experiments.digits.training import METHODS, Settings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "digits" / "results"
PAGE = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")


def test_the_pages_tables_are_those_that_the_command_makes():
    assert report.filled_in(PAGE, report.tables(RESULTS)) == PAGE


def test_a_changed_result_or_an_edited_table_is_noticed(tmp_path):
    results = runs.read_results(RESULTS)
    run = next(run for run in results if run.stage == "final")
    results[run] = dataclasses.replace(results[run], miou=results[run].miou + 0.01)
    (tmp_path / "settings.json").write_bytes((RESULTS / "settings.json").read_bytes())
    runs.write_results(tmp_path, results)
    assert report.filled_in(PAGE, report.tables(tmp_path)) != PAGE
    edited = PAGE.replace("| cross-entropy | ", "| cross-entropy | 9", 1)
    assert edited != PAGE
    assert report.filled_in(edited, report.tables(RESULTS)) == PAGE


def prose(name):
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_the_prose_says_what_the_tables_say():
    results, readme, page = runs.read_results(RESULTS), prose("README.md"), prose("docs/experiment.md")
    linear, unet = (report.compared(results, model, "miou") for model in ("linear", "unet"))
    worse = sorted(round(-mean) for mean, *_ in linear.values())
    assert all(
        p < 0.05
        for which in ("miou", "boundary_f")
        for *_, p in report.compared(results, "linear", which).values()
    )
    words = {2: "two", 4: "four"}
    assert f"by {words[worse[0]]} to {words[worse[-1]]} points of mIoU" in page
    assert f"a linear model's mIoU is {worse[0]} to {worse[-1]} points lower throughout" in readme
    ahead, low, _, p = unet["k5-p2"]
    assert ahead == max(mean for mean, *_ in unet.values())
    assert low > 0
    assert f"by {ahead:.1f} points of mIoU in the mean; its interval leaves zero out" in page
    assert f"(p = {p:.2f} after Holm's rule)" in page
    assert f"5×5 at p = 2, is {ahead:.1f} ahead; p-value {p:.2f} after Holm's correction" in readme
    assert all(low < 0 < high and p > 0.05 for name, (_, low, high, p) in unet.items() if name != "k5-p2")


def test_the_prose_says_what_the_seeds_say():
    results, page = runs.read_results(RESULTS), prose("docs/experiment.md")
    ce, window, both = (report.scores(results, "unet", name, "miou") for name in ("ce", "k5-p1", "k5-p2"))
    others = [*ce[1:], *window[1:]]
    assert (
        f"at seed 0 cross-entropy and 5×5 with p = 1 reach {ce[0]:.0f} and {window[0]:.0f} %, "
        f"and {min(others):.0f} to {max(others):.0f} % at the others"
    ) in page
    ahead = both - ce
    assert (ahead > 0).all()
    assert "ahead of cross-entropy at each of the five seeds" in page
    assert f"ahead at the other four too, by {min(ahead[1:]):.0f} to {max(ahead[1:]):.0f} points" in page


def test_the_results_are_all_there_and_of_the_settings_that_the_command_uses():
    assert runs.read_settings(RESULTS) == Settings()
    results = runs.read_results(RESULTS)
    asked = {*runs.search_runs(Settings()), *runs.final_runs(Settings(), results)}
    assert set(results) == asked
    assert len(Settings().seeds) >= 5


def test_no_loss_has_its_best_learning_rate_at_an_end_of_the_search():
    results = runs.read_results(RESULTS)
    for name in METHODS:
        assert min(Settings().rates) < runs.best_rate("unet", name, results) < max(Settings().rates), name


def test_the_log_is_of_one_command_that_made_every_result_in_order():
    results = runs.read_results(RESULTS)
    *printed, last = (RESULTS / "log.txt").read_text(encoding="utf-8").splitlines()
    scored = [line for line in printed if "mIoU" in line]
    titles = [f"{run.model} {METHODS[run.method].title} seed {run.seed}" for run in results]
    told = [
        f"{title} {run.stage} rate {run.rate}: mIoU {score.miou:.6f}"
        for title, (run, score) in zip(titles, results.items(), strict=True)
    ]
    assert [line.split(" min  ")[1] for line in scored] == told
    minutes = [float(line.split(" min  ")[0]) for line in scored]
    assert minutes == sorted(minutes)
    total = float(re.search(r"after ([\d.]+) minutes", last)[1])
    assert minutes[-1] <= total <= 90
    assert f"{total:.0f} minutes" in PAGE


@pytest.mark.parametrize("name", ["experiment-masks.png", "experiment-scores.png"])
def test_the_pictures_are_there(name):
    assert f"(images/{name})" in PAGE
    file = ROOT / "docs" / "images" / name
    assert file.stat().st_size < 300_000
    with Image.open(file) as picture:
        assert picture.info["Source"] == report.source_hash(RESULTS)  # else: make experiment


@pytest.mark.parametrize("name", ["runs.csv", "masks-unet-ce.png"])
def test_pictures_of_other_results_are_noticed(name, tmp_path):
    for file in RESULTS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert report.source_hash(tmp_path) == report.source_hash(RESULTS)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    assert report.source_hash(tmp_path) != report.source_hash(RESULTS)


def test_the_guide_to_mixing_names_the_rates_that_were_best():
    guide = " ".join((ROOT / "docs" / "howto" / "mix.md").read_text(encoding="utf-8").split())
    best: dict[float, list[str]] = {}
    for name in METHODS:
        best.setdefault(runs.best_rate("unet", name, runs.read_results(RESULTS)), []).append(name)
    assert best == {0.003: ["ce", "k1-p5", "k5-p1", "k5-p2"], 0.001: ["k3-p5", "k5-p5", "k7-p5"]}
    assert (
        "0.003 was best for cross-entropy, for 5×5 at p = 1 and 2, and for 1×1 at p = 5; "
        "0.001 for 3×3, 5×5 and 7×7 at p = 5."
    ) in guide


def test_the_predictions_kept_for_the_picture_are_classes():
    for model in runs.MODELS:
        for method in METHODS:
            masks = report.kept_masks(RESULTS, model, method)
            assert masks.shape == (runs.SHOWN, Settings().size, Settings().size)
            assert masks.max() < len(CLASSES)
