"""The benchmark checks before it times, and shows what it found; no time is asserted here."""

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lalref import bench, cli
from lalref.bench import contestants, inputs, measure
from lalref.bench.measure import Setting
from lalref.bench.summary import summary

SMALL = (1, 4, 12, 20)
OURS = (contestants.OURS, contestants.VALUE, "lalref array")


def test_inputs_are_the_same_on_every_run_and_of_every_kind():
    x = inputs.logits((2, 3, 50, 70))
    assert x.dtype == np.float32
    assert np.array_equal(x, inputs.logits((2, 3, 50, 70)))
    assert -6 <= x.min() < -5.9
    assert 5.9 < x.max() <= 6
    blobs, noise, one = (inputs.labels(kind, (2, 50, 70), 21) for kind in inputs.KINDS)
    assert {y.dtype.name for y in (blobs, noise, one)} == {"uint8"}
    assert inputs.VOID in blobs
    assert len(np.unique(blobs)) > 3
    assert set(np.unique(noise)) == set(range(21))
    assert not one.any()


@pytest.mark.parametrize("name", OURS)
def test_a_right_contestant_passes_its_check(name):
    contestant = next(c for c in contestants.CONTESTANTS if c.name == name)
    assert measure.check(contestant, 3) < 1e-5


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_a_wrong_one_is_not_timed(wrong):
    right = next(c for c in contestants.CONTESTANTS if c.name == contestants.OURS)

    def prepare(x, y, kernel_size):
        value, grad = right.prepare(x, y, kernel_size)()
        return lambda: (value * 1.01, grad) if wrong == "value" else (value, grad * 1.01)

    with pytest.raises(ValueError, match="not timed"):
        measure.check(right._replace(prepare=prepare), 3)


def test_the_command_writes_table_json_and_picture(monkeypatch, tmp_path):
    plan = [(Setting(SMALL, "blobs", k), OURS) for k in (1, 3)]
    monkeypatch.setattr(measure, "settings", lambda quick: plan)
    json_file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "--seconds", "0.01", "--json", str(json_file), "--picture", str(picture)]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    assert "lalref" in done.output
    written = json.loads(json_file.read_text())
    results = [r for r in written["results"] if r["contestant"] != measure.COPY]
    assert len(results) == len(written["results"]) - len(plan)
    assert not written["not_timed"]
    assert set(written["summary"]["growth"][contestants.OURS]) == {"1", "3"}
    assert "growth" in done.output
    assert [(r["setting"]["kernel_size"], r["contestant"]) for r in results] == [
        (k, name) for k in (1, 3) for name in ("lalref array", contestants.OURS, contestants.VALUE)
    ]
    assert all(0 < r["minimum"] <= r["median"] for r in results)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_settings_cover_windows_labels_sizes_and_threads():
    plan = [setting for setting, _ in measure.settings(quick=False)]
    assert {s.kernel_size for s in plan} == {1, 3, 5, 7, 15, 31}
    assert {s.kind for s in plan} == set(inputs.KINDS)
    assert {s.shape for s in plan} == {(2, 21, 321, 321), (8, 21, 513, 513), (1, 19, 1024, 2048)}
    assert 1 in {s.threads for s in plan}
    assert len(measure.settings(quick=True)) == 2
    machine = bench.as_json([])["machine"]
    assert machine["threads"] >= 1
    assert machine["numpy"] == np.__version__


def test_the_table_fits_80_columns():
    setting = Setting((8, 21, 513, 513), "blobs", 31)
    results = [
        measure.Result(setting, c.name, 12.3456, 12.3333, 9, 10**9, 123.4e9, 9999.99, 999.99, 99.99)
        for c in contestants.CONTESTANTS
    ]
    console = Console(width=80, file=io.StringIO())
    bench.show(results, console)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(c.name in shown for c in contestants.CONTESTANTS)
    assert all(
        word in shown for word in ("median", "CE", "torch", "GB/s", "logits", "12346", "1000.0", "123.4")
    )


def test_one_that_fails_loses_nothing_of_the_others(monkeypatch, tmp_path):
    def prepare(x, y, kernel_size):
        raise RuntimeError("no C++ compiler")

    fails = contestants.Contestant("torch, compiled", "numpy", 99, prepare)
    monkeypatch.setattr(measure, "CONTESTANTS", (fails, *contestants.CONTESTANTS))
    monkeypatch.setattr(
        measure, "settings", lambda quick: [(Setting(SMALL, "blobs", 3), (fails.name, contestants.OURS))]
    )
    json_file = tmp_path / "bench.json"
    done = CliRunner().invoke(cli.main, ["bench", "--seconds", "0.01", "--json", str(json_file)])
    assert done.exit_code == 1
    assert "no C++ compiler" in done.output
    written = json.loads(json_file.read_text())
    assert [r["contestant"] for r in written["not_timed"]] == [fails.name]
    assert contestants.OURS in [r["contestant"] for r in written["results"]]


def test_the_summary_divides_what_belongs_together():
    def result(median, kernel_size=3, name=contestants.OURS, shape=SMALL, kind="blobs", threads=None):
        setting = Setting(shape, kind, kernel_size, threads)
        return measure.Result(setting, name, median, median, 3, None, 1.0, 1.0)

    found = summary(
        [
            result(1.0, 1), result(2.0), result(1.2, name=contestants.VALUE), result(3.0, kind="noise"),
            result(9.6e-6, shape=(1, 4, 12, 40)), result(8.0, threads=1), result(5.0, threads=2),
        ]
    )  # fmt: skip
    assert found["growth"] == {contestants.OURS: {1: 1.0, 3: 2.0}}
    assert found["sizes"] == pytest.approx({"3, 1×4×12×20": 2e9 / 960, "3, 1×4×12×40": 5.0})
    assert found["threads"] == {1: 1.0, 2: 1.6}
    assert found["labels"] == {"noise, 3": 1.5}
    assert found["value_only"] == {3: 0.6}


def test_a_copy_moves_twice_the_bytes_of_the_logits():
    results, _ = measure.measure(Setting(SMALL, "blobs", 3), OURS, 0.01, lambda now: None)
    for r in results:
        moved = (1 if r.contestant == contestants.VALUE else 2) * 4 * np.prod(SMALL)
        assert r.bandwidth * r.median == pytest.approx(moved)
    assert measure.COPY in [r.contestant for r in results]
