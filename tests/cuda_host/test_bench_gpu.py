"""The benchmark of `make bench-gpu` from end to end, on a stand-in for CuPy whose clock counts what is launched.

No time that comes out of here is one of a GPU, and the report says so itself: it names the device that it was given.
"""

import json
import os
import re

import pytest

from cuda_host.stand_in import as_if_on_a_gpu
from lalref import LocallyAdaptiveLoss
from lalref.bench import gpu
from lalref.oracle import cases

SHAPE = (1, 3, 12, 40)
# list_kinds, where windows are pooled by class; divisors, losses; stage 3; for each of three channels slopes, gather
LAUNCHES = {3: 2 + 5 + 6, 5: 3 + 5 + 6, 15: 3 + 5 + 6}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu, "SHAPES", (SHAPE,))
    monkeypatch.setattr(gpu, "QUICK", (SHAPE,))
    monkeypatch.setattr(gpu, "WINDOWS", tuple(LAUNCHES))
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    monkeypatch.setattr(cases, "CASES", cases.CASES[:3])


def test_it_checks_then_times_and_writes_down_what_on(small, tmp_path, capsys, monkeypatch):
    path = tmp_path / "reports" / "gpu.json"
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 570.86.15\necho 570.86.15\n")  # a line for each GPU
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with as_if_on_a_gpu():
        assert gpu.main(["--report", str(path)]) == 0
    report = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report["device"] == "no GPU: the kernels on the CPU"
    assert report["cupy"] == "a stand-in"
    assert report["driver"] == "570.86.15"
    assert gpu.changed(path) == []
    assert list(path.parent.iterdir()) == [path]
    assert set(report["accuracy in error units"]) == set(gpu.kernels.TYPES)
    assert 0 < max(report["accuracy in error units"].values()) <= gpu.MOST_UNITS
    assert [(tuple(each["shape"]), each["kernel_size"]) for each in report["times"]] == [
        (SHAPE, kernel_size) for kernel_size in LAUNCHES
    ]
    for each, launches in zip(report["times"], LAUNCHES.values(), strict=True):
        assert each["milliseconds"] == {"copy": 2.0, "lalref cuda": launches}
        assert each["of moving three times the logits"] == launches / 3  # a copy moves them twice
        assert each["of 3 x 3"] == launches / LAUNCHES[3]
        assert (
            each["of cross_entropy"] is each["faster than the best torch"] is None
        )  # no torch on this device


def test_the_input_sets_hold_different_logits_and_labels(monkeypatch):
    given = []
    monkeypatch.setattr(LocallyAdaptiveLoss, "value_and_grad", lambda self, x, y: given.append((x, y)))
    with as_if_on_a_gpu():
        call = gpu.contestants(SHAPE, 3)["lalref cuda"].call
        for i in range(gpu.INPUT_SETS):
            call(i)
    for k in range(2):
        assert len({arrays[k].get().tobytes() for arrays in given}) == gpu.INPUT_SETS


def fails(i):
    raise MemoryError("no room")


def altered(name, **how):
    """`gpu.contestants`, one of which is another."""
    contestants = gpu.contestants

    def found(shape, kernel_size):
        found = contestants(shape, kernel_size)
        return found | {name: found.get(name, found["lalref cuda"])._replace(**how)}

    return found


def test_a_contestant_that_fails_is_told_and_the_others_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "contestants", altered("torch shift and mask", call=fails))
    with as_if_on_a_gpu():
        (result,) = gpu.measure((SHAPE,), (3,), 2)
    assert result["failures"] == {"torch shift and mask": "MemoryError: no room"}
    assert set(result["milliseconds"]) == {"copy", "lalref cuda"}
    assert "no room" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(gpu.NEEDED))
@pytest.mark.parametrize("which", [0, 1], ids=["value", "gradient"])
def test_nobody_is_timed_whose_answer_at_that_shape_is_wrong(name, which, monkeypatch):
    call = None

    def slightly_wrong(i):
        answer = list(call(i))
        answer[which] = answer[which] * 1.001
        return tuple(answer)

    with as_if_on_a_gpu():
        call = gpu.contestants(SHAPE, 3)[name].call
        monkeypatch.setattr(gpu, "contestants", altered(name, call=slightly_wrong))
        (result,) = gpu.measure((SHAPE,), (3,), 2)
    assert set(result["milliseconds"]) == gpu.NEEDED - {name}
    assert re.match(
        rf"ValueError: its {('value', 'gradient')[which]} is off by \S+, of", result["failures"][name]
    )


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("name", sorted(gpu.NEEDED))
def test_without_times_of_lalref_and_of_the_copy_there_is_no_report(
    small, name, quick, monkeypatch, tmp_path, capsys
):
    report = tmp_path / "gpu.json"
    report.write_text("measured before")
    monkeypatch.setattr(gpu, "contestants", altered(name, call=fails))
    with as_if_on_a_gpu():
        assert gpu.main(["--report", str(report), *["--quick"] * quick]) == 1
    said = capsys.readouterr().err
    assert f"no report, for these have no time: {SHAPE}, 3: {name}; {SHAPE}, 5: {name}" in said
    assert report.read_text() == "measured before"
    partial = tmp_path / "gpu.partial.json"
    assert partial.exists() == (str(partial) in said) == (not quick)
    if not quick:
        other = (gpu.NEEDED - {name}).pop()
        assert all(set(each["milliseconds"]) == {other} for each in json.loads(partial.read_text())["times"])


def test_without_nvidia_smi_no_driver_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.driver() is None


def test_a_first_look_writes_no_report(small, tmp_path, capsys):
    with as_if_on_a_gpu():
        assert gpu.main(["--quick", "--report", str(tmp_path / "gpu.json")]) == 0
    assert [each["kernel_size"] for each in json.loads(capsys.readouterr().out)["times"]] == [3, 5]
    assert not list(tmp_path.iterdir())


def test_nothing_is_timed_or_written_where_a_result_is_wrong(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "MOST_UNITS", 0)
    monkeypatch.setattr(gpu, "measure", pytest.fail)
    with as_if_on_a_gpu():
        assert gpu.main(["--report", str(tmp_path / "gpu.json")]) == 1
    assert "wrong, so nothing is timed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_median_of_rounds_after_warm_up_over_inputs_in_turn():
    given = []
    with as_if_on_a_gpu() as clock:

        def call(i):
            given.append(i)
            clock[0] += 100.0 if len(given) <= gpu.WARM_UP else len(given)

        assert gpu.milliseconds(call, 4) == [4.0, 5.0, 6.0, 7.0]
    assert given == [0, 1, 2, 0, 1, 2, 0]


def test_what_the_times_come_to(monkeypatch):
    each_takes = {
        "copy": 2.0,
        "lalref cuda": 5.0,
        "torch cross_entropy": 4.0,
        "torch shift and mask": 80.0,
        "torch shift and mask, compiled": 60.0,
    }
    with as_if_on_a_gpu() as clock:

        def spend(milliseconds):
            clock[0] += milliseconds

        def contestants(shape, kernel_size):
            slower = kernel_size / 3  # every one of them
            return {
                name: gpu.Contestant(lambda i, time=time: spend(time * slower), fails)
                for name, time in each_takes.items()
                if kernel_size == 3 or "torch shift" not in name
            }

        monkeypatch.setattr(gpu, "contestants", contestants)
        monkeypatch.setattr(gpu, "check", lambda contestant: None)
        small, large = gpu.measure([SHAPE], (3, 6), 3)
    assert small["milliseconds"] == each_takes
    assert small["of moving three times the logits"] == pytest.approx(5 / 3)
    assert small["of cross_entropy"] == pytest.approx(1.25)
    assert small["faster than the best torch"] == pytest.approx(12)
    assert small["of 3 x 3"] == 1
    assert large["of 3 x 3"] == pytest.approx(2)
    assert large["faster than the best torch"] is None
