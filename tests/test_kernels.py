"""The cuda engine where there is no GPU: what it says, how it cuts calls to tiles, what a report is worth."""

import importlib.util
import json
import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lalref
from lalref import engines
from lalref.bench import gpu
from lalref.engines import array, kernels
from lalref.engines.kernels_geometry import MOST_LENGTH, MOST_REACH, SCRATCH, SHARED_MEMORY, Geometry

REPORT = Path(__file__).parents[1] / gpu.REPORT
X, Y = np.zeros((1, 2, 3, 3)), np.zeros((1, 3, 3), int)


def test_asked_for_by_name_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"engine=\"cuda\" needs CuPy: in a clone .* '\.\[cuda13\]'"):
        lalref.lal_loss(X, Y, engine="cuda")


def test_a_broken_cupy_is_told_from_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(
        ValueError, match=r"CuPy, which is installed but can't be imported \(libcudart\.so\.13"
    ):
        lalref.lal_loss(X, Y, engine="cuda")


@pytest.fixture
def a_device(monkeypatch):
    """As if CuPy were here and saw a GPU."""

    class Cupy:
        class cuda:
            is_available = staticmethod(lambda: True)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", Cupy)
    return Cupy


def test_without_a_device_it_says_so(a_device, monkeypatch):
    monkeypatch.setattr(a_device.cuda, "is_available", staticmethod(lambda: False))
    with pytest.raises(ValueError, match=r"no CUDA device is visible to CuPy: check the driver"):
        lalref.lal_loss(X, Y, engine="cuda")


def test_arrays_of_another_library_are_not_copied_to_the_device(a_device):
    with pytest.raises(ValueError, match=r"takes CuPy arrays, got numpy\.ndarray: cupy\.asarray\(\) copies"):
        lalref.lal_loss(X, Y, engine="cuda")


def test_shared_memory_is_asked_for_where_a_kernel_has_a_use_for_it():
    """What a kernel declares itself comes on top, so that a needless request could be one too many."""
    kernel = re.compile(r"__global__ void (\w+)\((.*?)\n}", re.S)
    found = {name: "extern __shared__" in body for name, body in kernel.findall(kernels.source())}
    assert len(found) >= 9
    assert {name for name, shares in found.items() if not shares} == set(kernels.NONE_SHARED)
    assert not any("__shared__ int" in body for name, body in kernel.findall(kernels.source()) if found[name])


@pytest.mark.parametrize("call", ["jvp", "hvp"])
def test_what_it_does_not_work_out_is_refused_by_name(call):
    with pytest.raises(ValueError, match=f'engine="cuda" works out values and gradients, no {call}'):
        getattr(lalref, f"lal_{call}")(X, Y, X, engine="cuda")


@pytest.mark.parametrize(
    ("shape", "kernel_size", "said"),
    [
        ((1, 2, 3, 3, 3), 3, "takes up to 2 spatial axes, got 3"),
        ((1, 1, 5000), 9999, "up to 4095 pixels, got 4999"),
    ],
)
def test_what_is_too_large_for_it_is_refused(a_device, monkeypatch, shape, kernel_size, said):
    monkeypatch.setattr(kernels, "library", lambda xp: "cupy")
    options = lalref.LocallyAdaptiveLoss(kernel_size=kernel_size)
    assert said in kernels.why_not(np.zeros(shape), options)
    assert kernels.why_not(np.zeros((1, 2, 8, 8)), options) == ""


def of_shape(*shape):
    """Logits of any size, that are one number."""
    return np.broadcast_to(np.float32(0), shape)


LONG = {
    "columns": lambda n: (1, 2, 3, n),
    "rows": lambda n: (1, 2, n, 3),
    "one axis": lambda n: (1, 2, n),
    "points": lambda n: (n, 2),
    "classes": lambda n: (1, n, 3, 3),
}


@pytest.mark.parametrize("shape", LONG.values(), ids=LONG.keys())
def test_an_axis_whose_places_do_not_fit_into_31_bits_is_refused(a_device, monkeypatch, shape):
    monkeypatch.setattr(kernels, "library", lambda xp: "cupy")
    options = lalref.LocallyAdaptiveLoss()
    for n in (MOST_LENGTH + 1, 2**31, 2**40):
        said = kernels.why_not(of_shape(*shape(n)), options)
        assert (
            f'takes up to 1073741824 pixels along an axis, and so many classes, got {n}: use engine="array"'
            == said
        )
    monkeypatch.setattr(engines, "library", lambda xp: "cupy")
    problem = types.SimpleNamespace(options=options, xp=None, logits=of_shape(*shape(2**31)))
    assert engines.choose(problem, "gradient") is array
    problem.options = lalref.LocallyAdaptiveLoss(engine="cuda")
    with pytest.raises(ValueError, match=r'engine="cuda" takes up to 1073741824 pixels along an axis'):
        engines.choose(problem, "gradient")
    longest = of_shape(*shape(MOST_LENGTH))
    assert kernels.why_not(longest, options) == ""
    call = Geometry.of(longest, longest.shape[2:], options, longest.dtype).call[0]
    assert max(int(call[name]) for name in ("C", "H", "W")) == MOST_LENGTH


@pytest.mark.parametrize(("S", "most"), [((3, 3), 2**31 - 1), ((8, 33), 2**30 - 1), ((1, 257), 2**30 - 1)])
def test_more_tiles_than_a_launch_has_blocks_are_refused(a_device, monkeypatch, S, most):
    monkeypatch.setattr(kernels, "library", lambda xp: "cupy")
    options = lalref.LocallyAdaptiveLoss()
    assert kernels.why_not(of_shape(most, 2, *S), options) == ""
    said = "takes batches of up to 2147483647 tiles, got 21474836"
    assert said in kernels.why_not(of_shape(most + 1, 2, *S), options)
    assert kernels.why_not(of_shape(2**30, 2), options) == ""  # points are one row


@given(
    S=st.lists(st.integers(1, 3000), max_size=2),
    kernel_size=st.integers(0, MOST_REACH).map(lambda r: 2 * r + 1),
    sigma=st.sampled_from([None, 0.01, 1.0, 30.0, 1e4]),
    stride=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_any_geometry_is_one_that_a_device_launches(S, kernel_size, sigma, stride, dtype):
    options = lalref.LocallyAdaptiveLoss(kernel_size=kernel_size, sigma=sigma, stride=stride)
    N, C = 7, 5
    logits = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), (N, C, *S), (0,) * (2 + len(S)))
    grid = [-(-n // stride) for n in S]
    geometry = Geometry.of(logits, grid, options, np.dtype(dtype))
    assert math.prod(geometry.block) % 32 == 0
    assert math.prod(geometry.block) <= 1024
    windows, pixels = geometry.tiles
    for tiles, (rows, columns) in (
        (windows, (geometry.call["rows"][0], geometry.call["columns"][0])),
        (pixels, (geometry.call["H"][0], geometry.call["W"][0])),
    ):
        assert tiles * math.prod(geometry.block) >= rows * columns
    for call in (geometry.call, geometry.full):
        assert geometry.shared_bytes(call) <= SHARED_MEMORY
        assert call["most"][0] == 0 or call["span"][0] > 0
    images, channels = geometry.groups
    plane = int(geometry.call["rows"][0]) * int(geometry.call["columns"][0]) * np.dtype(dtype).itemsize
    assert images * channels == 1 or images * channels * plane <= SCRATCH
    assert images * channels <= max(1, N * C // 4)


def test_weights_that_round_to_zero_cut_the_reach_but_not_the_count():
    logits = np.zeros((1, 2, 40, 40), np.float32)
    options = lalref.LocallyAdaptiveLoss(kernel_size=31, sigma=0.25, normalize="count")
    geometry = Geometry.of(logits, (40, 40), options, logits.dtype)
    reach = int(geometry.call["reach_w"][0])
    w = np.exp(-0.5 * (np.arange(16) / 0.25) ** 2).astype(np.float32)
    assert w[reach] > 0 == w[reach + 1]
    assert geometry.full["reach_w"][0] == 15


@pytest.mark.parametrize(("C", "by_class"), [(2**23 - 1, True), (2**23, False)])
def test_labels_that_do_not_fit_beside_a_thread_are_pooled_by_cells(C, by_class):
    logits = np.broadcast_to(np.float32(0), (1, C, 40, 40))
    geometry = Geometry.of(logits, (40, 40), lalref.LocallyAdaptiveLoss(kernel_size=9), logits.dtype)
    assert (geometry.call["most"][0] > 0) == by_class


# --- The report of a run on a GPU -------------------------------------------------------------------------


@pytest.mark.skipif(not REPORT.exists(), reason=f"not yet measured on a GPU: there is no {gpu.REPORT}")
def test_the_report_belongs_to_these_kernels():
    assert gpu.changed(REPORT) == [], "measure again with: make bench-gpu"


@pytest.mark.parametrize("page", ["README.md", "docs/cuda.md"])
def test_the_pages_say_that_nothing_was_measured_as_long_as_there_is_no_report(page):
    said = "not yet measured on a gpu" in (REPORT.parents[1] / page).read_text(encoding="utf-8").lower()
    assert said != REPORT.exists(), f"{gpu.REPORT} and {page} must agree on whether a GPU was measured"


def test_a_report_of_other_kernels_is_noticed(tmp_path):
    report = tmp_path / "gpu.json"
    report.write_text(json.dumps({"sources": gpu.sources()}))
    assert gpu.changed(report) == []
    report.write_text(json.dumps({"sources": gpu.sources() | {"kernels.cu": "0" * 64}}))
    assert gpu.changed(report) == ["kernels.cu"]
    report.write_text(json.dumps({"sources": {}}))
    assert gpu.changed(report) == sorted(gpu.sources())


def test_the_benchmark_without_a_gpu_says_why_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu.main(["--report", str(tmp_path / "gpu.json")]) == 3
    assert "nothing is measured: the cuda engine needs CuPy" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_benchmark_refuses_what_it_does_not_know():
    with pytest.raises(SystemExit):
        gpu.main(["--fast"])
