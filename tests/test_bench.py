"""The benchmark checks before it times, and shows what it found; no time is asserted here."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import lalref
from lalref import bench, cli
from lalref.bench import contestants, inputs, measure, parts, rounds
from lalref.bench.measure import Setting
from lalref.bench.summary import summary
from lalref.engines.loops_threads import number_of_threads

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


def one_setting(kernel_size, kind="blobs", threads=1, shape=SMALL):
    return Setting(shape, kind, kernel_size, threads)


def test_the_command_writes_table_json_and_picture(monkeypatch, tmp_path):
    plan = {f"window {k}×{k}": [(one_setting(k), name) for name in OURS] for k in (1, 3)}
    plan["growth"] = [(one_setting(k), name) for k in (1, 3) for name in OURS[:2]]
    monkeypatch.setattr(measure, "plan", lambda quick: plan)
    monkeypatch.setattr(rounds, "tell_jax", lambda number: None)  # it is for good
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
    assert set(written["summary"]["value_only"]) == {"1", "3"}
    assert "growth" in done.output
    assert [(r["group"], r["setting"]["kernel_size"], r["contestant"]) for r in results] == [
        (group, setting.kernel_size, name) for group, entries in plan.items() for setting, name in entries
    ]
    for r in results:
        assert 0 < r["minimum"] <= r["median"]
        assert r["rounds"] == len(r["times"])
        assert sorted(r["times"])[0] == r["minimum"]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_plan_covers_windows_labels_sizes_and_threads():
    plan = measure.plan(quick=False)
    settings = {group: [setting for setting, _ in entries] for group, entries in plan.items()}
    windows = (1, 3, 5, 7, 15, 31)
    everyone = [c.name for c in contestants.CONTESTANTS]
    for k in windows:
        assert {s.kernel_size for s in settings[f"window {k}×{k}"]} == {k}
        assert [name for _, name in plan[f"window {k}×{k}"]] == everyone
    for name in (contestants.OURS, contestants.VALUE):
        assert tuple(s.kernel_size for s, n in plan["growth"] if n == name) == windows
    for group, field, values in (
        ("labels", "kind", set(inputs.KINDS)),
        ("sizes", "shape", {(2, 21, 321, 321), (8, 21, 513, 513), (1, 19, 1024, 2048)}),
    ):
        for name, ks in ((contestants.OURS, (3, 5)), (contestants.CROSS_ENTROPY, (1,))):
            timed = [(getattr(s, field), s.kernel_size) for s, n in plan[group] if n == name]
            assert set(itertools.product(values, ks)) <= set(timed)
    assert 1 in {s.threads for s in settings["threads"]}
    number = rounds.number_of_threads()  # the same everywhere else
    assert {s.threads for group in plan if group != "threads" for s in settings[group]} == {number}
    assert {s.kernel_size for group in measure.plan(quick=True).values() for s, _ in group} == {1, 3, 5}
    machine = bench.as_json([])["machine"]
    assert machine["threads"] == number
    assert machine["numpy"] == np.__version__


# --- Ratios, by a clock that is ours ------------------------------------------------------------------------------


class Clock:
    """A clock that goes on only when a contestant says so, but for a tick at each look."""

    now = 0.0

    def __init__(self, tick=0.0):
        self.tick = tick

    def perf_counter(self):
        self.now += self.tick
        return self.now


@pytest.fixture
def takes(monkeypatch):
    """takes({name: seconds of call i}) makes contestants that are right, and take so long by a clock of their own."""
    clock = Clock(tick=1e-9)  # copying the logits, which is timed too, takes no time
    monkeypatch.setattr(rounds, "time", clock)

    def contestant(name, seconds):
        options = {"kernel_size": 1, "p": 1} if name == contestants.CROSS_ENTROPY else {}

        def prepare(x, y, kernel_size):
            found = lalref.lal_value_and_grad(x, y, **({"kernel_size": kernel_size} | options))
            calls = itertools.count(-2)  # of which the first two compile and measure memory

            def call():
                clock.now += seconds(next(calls) // 2)  # an untimed call, and the one that is timed
                return found

            return call

        return contestants.Contestant(name, "numpy", 99, prepare)

    def make(**seconds):
        names = {
            "plain": contestants.CROSS_ENTROPY, "eager": "torch eager", "compiled": "torch compiled",
            "ours": contestants.OURS,
        }  # fmt: skip
        made = tuple(contestant(names[key], function) for key, function in seconds.items())
        monkeypatch.setattr(measure, "CONTESTANTS", made)
        entries = [(one_setting(3), c.name) for c in made]
        results, refused = measure.measure("g", entries, 60.0, lambda now: None)
        assert not refused
        short = {name: key for key, name in names.items()}
        return {short[r.contestant]: r for r in results if r.contestant in short}

    return make


def test_ratio_and_speedup_are_divided_the_right_way_round(takes):
    found = takes(plain=lambda i: 2.0, eager=lambda i: 12.0, compiled=lambda i: 9.0, ours=lambda i: 3.0)
    assert {name: r.ratio for name, r in found.items()} == pytest.approx(
        {"plain": 1, "eager": 6, "compiled": 4.5, "ours": 1.5}
    )
    assert {name: r.speedup for name, r in found.items()} == pytest.approx(
        {"plain": 4.5, "eager": 0.75, "compiled": 1, "ours": 3}
    )
    assert {name: r.median for name, r in found.items()} == pytest.approx(
        {"plain": 2, "eager": 12, "compiled": 9, "ours": 3}
    )


def test_who_sits_out_is_compared_with_the_others_in_its_own_rounds(takes):
    """The machine is three times as slow in the rounds that the slow contestant no longer takes part in."""

    def pace(i):
        return 1.0 if i < rounds.LEAST else 3.0

    found = takes(plain=lambda i: 0.1 * pace(i), eager=lambda i: 20.0 * pace(i), ours=lambda i: 0.2 * pace(i))
    assert found["eager"].rounds == rounds.LEAST
    assert found["ours"].rounds > 5 * rounds.LEAST
    assert found["ours"].median == pytest.approx(0.6)
    assert found["eager"].ratio == pytest.approx(200)
    assert found["ours"].speedup == pytest.approx(100)
    assert found["ours"].ratio == pytest.approx(2)


def test_a_machine_that_changes_pace_within_a_run_changes_no_ratio(takes):
    found = takes(plain=lambda i: 1.0 + i % 7, ours=lambda i: 1.5 * (1.0 + i % 7))
    assert found["ours"].ratio == pytest.approx(1.5)


def test_every_timed_call_follows_one_of_its_own_that_is_not(takes):
    """However slow it is: the first call of a pair takes longer here, and is never what is timed."""
    happened = []
    calls = [rounds.Timed(name, 1, lambda name=name: happened.append(name)) for name in ("quick", "slow")]
    times = rounds.in_rounds(calls, 0.0, lambda now: None)
    assert [len(each) for each in times] == [rounds.LEAST] * 2
    assert happened == [*["quick"] * 2, *["slow"] * 4, *["quick"] * 4, *["slow"] * 2]


# --- What reaches a contestant, and what is read from it ----------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
def test_the_peak_is_that_of_the_call():
    held = 64 << 20
    found = rounds.peak_of(lambda: np.ones(held, np.uint8).sum())  # freed before it returns
    assert 0.9 * held < found < 1.5 * held  # some pages were there before
    assert rounds.peak_of(lambda: None) < held / 4


@pytest.mark.parametrize("number", [1, 2])
def test_the_number_of_threads_reaches_the_contestant_and_then_is_as_before(monkeypatch, number):
    before = number_of_threads()
    if number > before:
        pytest.skip(f"{before} thread here")
    right = next(c for c in contestants.CONTESTANTS if c.name == contestants.OURS)
    seen = set()

    def prepare(x, y, kernel_size):
        call = right.prepare(x, y, kernel_size)

        def seeing():
            seen.add(number_of_threads())
            return call()

        return seeing

    monkeypatch.setattr(measure, "CONTESTANTS", (right._replace(prepare=prepare),))
    entries = [(one_setting(3, threads=number), contestants.OURS)]
    _, refused = measure.measure("g", entries, 0.0, lambda now: None)
    assert not refused
    assert seen == {number}
    assert number_of_threads() == before


def test_the_table_fits_80_columns():
    large = one_setting(31, shape=measure.LARGE)
    numbers = 12.3456, 12.3333, 9, 10**9, 123.4e9, 9999.99, 999.99
    results = [measure.Result("window", large, c.name, *numbers, 99.99) for c in contestants.CONTESTANTS]
    for group, other in (
        ("kinds", one_setting(31, "one class", shape=measure.LARGE)),
        ("sizes", one_setting(3, shape=measure.CITY)),
        ("threads", one_setting(31, threads=16, shape=measure.LARGE)),
        ("growth", one_setting(15, shape=measure.LARGE)),
    ):
        names = contestants.OURS, contestants.CROSS_ENTROPY
        results += [measure.Result(group, s, name, *numbers) for s in (large, other) for name in names]
    console = Console(width=80, file=io.StringIO())
    bench.show(results, console)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(c.name in shown for c in contestants.CONTESTANTS)
    assert all(
        word in shown
        for word in ("median", "CE", "torch", "GB/s", "logits", "12346", "12333", "1000.0", "123.4")
    )


def test_one_that_fails_loses_nothing_of_the_others(monkeypatch, tmp_path):
    def prepare(x, y, kernel_size):
        raise RuntimeError("no C++ compiler")

    fails = contestants.Contestant("torch, compiled", "numpy", 99, prepare)
    monkeypatch.setattr(measure, "CONTESTANTS", (fails, *contestants.CONTESTANTS))
    entries = [(one_setting(3), name) for name in (fails.name, contestants.OURS)]
    monkeypatch.setattr(measure, "plan", lambda quick: {"window 3×3": entries})
    monkeypatch.setattr(rounds, "tell_jax", lambda number: None)
    json_file = tmp_path / "bench.json"
    done = CliRunner().invoke(cli.main, ["bench", "--seconds", "0.01", "--json", str(json_file)])
    assert done.exit_code == 1
    assert "no C++ compiler" in done.output
    written = json.loads(json_file.read_text())
    assert [r["contestant"] for r in written["not_timed"]] == [fails.name]
    assert contestants.OURS in [r["contestant"] for r in written["results"]]


def test_the_summary_divides_what_was_timed_together():
    """Round by round: the second round was ten times as slow, in every group."""

    def result(
        group, seconds, kernel_size=3, name=contestants.OURS, shape=measure.SMALL, kind="blobs", threads=2
    ):
        setting = Setting(shape, kind, kernel_size, threads)
        times = (seconds, 10 * seconds, seconds)
        return measure.Result(group, setting, name, seconds, seconds, 3, None, 1.0, 1.0, times=times)

    value = contestants.VALUE
    found = summary(
        [
            result("window 1×1", 7.0, 1), result("window 3×3", 9.0),  # timed at other times: of no use here
            result("growth", 1.0, 1), result("growth", 2.0), result("growth", 0.5, 1, value),
            result("growth", 1.2, 3, value),
            result("labels", 3.0, kind="noise"), result("labels", 1.5), result("labels", 6.0, 5, kind="noise"),
            result("sizes", 5.0, shape=measure.LARGE), result("sizes", 0.5),
            result("threads", 8.0, threads=1), result("threads", 5.0),
        ]
    )  # fmt: skip
    assert found["growth"] == {contestants.OURS: {1: 1, 3: 2}, value: {1: 1, 3: pytest.approx(2.4)}}
    assert found["value_only"] == pytest.approx({1: 0.5, 3: 0.6})
    assert found["labels"] == {"noise, 3": 2}
    small, large = np.prod(measure.SMALL), np.prod(measure.LARGE)
    assert found["sizes"] == pytest.approx({"3, 8×21×513×513": 5e9 / large, "3, 2×21×321×321": 0.5e9 / small})
    assert found["per_logit"] == pytest.approx({"3, 8×21×513×513": 10 * small / large})
    assert found["threads"] == pytest.approx({1: 1, 2: 1.6})
    assert not any(summary([]).values())


def test_a_copy_moves_twice_the_bytes_of_the_logits():
    entries = [(one_setting(3), name) for name in OURS]
    results, _ = measure.measure("g", entries, 0.01, lambda now: None)
    for r in results:
        moved = (1 if r.contestant == contestants.VALUE else 2) * 4 * np.prod(SMALL)
        assert r.bandwidth * r.median == pytest.approx(moved)
    assert measure.COPY in [r.contestant for r in results]


# --- One call taken apart -----------------------------------------------------------------------------------------


def test_the_parts_of_a_call_add_up_and_each_is_charged_for_what_it_does(monkeypatch):
    x, y = inputs.logits(SMALL), inputs.labels("noise", (1, 12, 20), 4)
    clock = Clock()
    monkeypatch.setattr(parts, "time", clock)

    def taking(function, seconds):
        def call(*args, **more):
            clock.now += seconds
            return function(*args, **more)

        return call

    expected = dict.fromkeys((part for _, _, part in parts.WRAPPED), 0.0)
    for i, (place, name, part) in enumerate(parts.WRAPPED):
        monkeypatch.setattr(place, name, taking(getattr(place, name), 10.0**i))
        expected[part] += 10.0**i
    before = [getattr(place, name) for place, name, _ in parts.WRAPPED]
    loss = lalref.LocallyAdaptiveLoss(kernel_size=3, engine="numba")

    def call():
        clock.now += 0.5  # at the door
        return loss.value_and_grad(x, y)

    found = parts.one_call(call)
    engine = expected.pop(parts.ENGINE)  # its own second is in none of its functions
    assert found == expected | {parts.REST: engine, parts.DOOR: 0.5, parts.WHOLE: sum(found.values()) / 2}
    assert [getattr(place, name) for place, name, _ in parts.WRAPPED] == before


def test_the_parts_are_shown_with_what_the_wrappers_cost(monkeypatch, capsys):
    monkeypatch.setattr(parts, "SHAPE", SMALL)
    found = parts.main(kernel_size=5, calls=2)
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
    shown = capsys.readouterr().out
    assert "5×5" in shown
    assert all(part in shown for part in found)
    assert {parts.WHOLE, parts.BARE, parts.DOOR} < set(found)
