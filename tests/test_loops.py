"""The numba engine's own promises: blocks, paths, compilation; threads are test_loops_threads.

What it computes, every test of the front door asks of it by name; here it is held to the array engine where only
its own choices could go wrong.
"""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import same_bits

from lalref import LocallyAdaptiveLoss, lal_loss, lal_value_and_grad, truth
from lalref.bench.inputs import labels, logits
from lalref.engines import (
    array,
    loops,
    loops_cache,
    loops_kernels,
    loops_maps,
    loops_margins,
    loops_math,
    loops_probability,
)
from lalref.engines.loops_lanes import LANES, fill, load, store

ELSEWHERE = "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"  # else both say where compiled code is kept
EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def blobs(N=2, C=5, H=37, W=83):
    return logits((N, C, H, W)), labels("blobs", (N, H, W), C)


def close(found, right, eps, many=40):
    """Within `many` roundings of the largest number that the reference holds."""
    scale = np.abs(right).max()
    np.testing.assert_allclose(found, right, rtol=0, atol=many * eps * scale)


# ---- every way through the loops ------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9, 15, 31, (1, 5), (7, 3), (3, 31)], ids=str)
@pytest.mark.parametrize("kind", ["blobs", "noise", "one class"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_window_and_kind_of_labels_gives_what_the_array_engine_gives(kernel_size, kind, dtype):
    """Windows with loops of their own and without, blocks pooled by class and by cell."""
    x, y = logits((2, 6, 41, 75)), labels(kind, (2, 41, 75), 6)
    options = {"kernel_size": kernel_size, "sigma": 1.5}
    value, grad = lal_value_and_grad(x.astype(dtype), y, engine="numba", **options)
    right, right_grad = lal_value_and_grad(x.astype(np.float64), y, engine="array", **options)
    np.testing.assert_allclose(value, right, rtol=40 * EPS[dtype])
    close(grad, right_grad, EPS[dtype])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_agrees_with_the_array_engine_for_any_shape_stride_and_kernel(data):
    axes = data.draw(st.integers(0, 3))
    S = tuple(data.draw(st.integers(1, {0: 1, 1: 70, 2: 40, 3: 9}[axes])) for _ in range(axes))
    N, C = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    loss = LocallyAdaptiveLoss(
        kernel_size=tuple(2 * data.draw(st.integers(0, 4)) + 1 for _ in S),
        stride=tuple(data.draw(st.integers(1, 3)) for _ in S),
        sigma=data.draw(st.sampled_from([None, 0.1, 1.0, 3.0])),
        normalize=data.draw(st.sampled_from(["weights", "count"])),
        space=data.draw(st.sampled_from(["logits", "probabilities"])),
    )
    seed = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = seed.standard_normal((N, C, *S)) * 3
    y = seed.integers(-1, C, (N, *S)).astype(np.int32)
    y_grid = y[(slice(None), *(slice(None, None, s) for s in loss.strides(axes)))]
    valid = (y_grid >= 0) & (seed.random(y_grid.shape) > 0.1)
    g = seed.random(y_grid.shape)
    with np.errstate(all="ignore"):
        ell = array.window_losses(x, y, valid, loss)
        grad = array.window_losses_vjp(x, y, valid, loss, g)
    np.testing.assert_allclose(loops.window_losses(x, y, valid, loss), ell, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(loops.window_losses_vjp(x, y, valid, loss, g), grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [5, 19])
def test_16_bit_logits_are_float32_ones_rounded_at_the_end(dtype, space, kernel_size):
    x, y = blobs(H=150)
    x = x.astype(dtype)
    options = {"space": space, "kernel_size": kernel_size, "grad_output": 1000.0, "engine": "numba"}
    value, grad = lal_value_and_grad(x, y, **options)
    right, right_grad = lal_value_and_grad(x.astype(np.float32), y, **options)
    assert same_bits(value, right)
    assert grad.dtype == dtype
    assert same_bits(grad.view(np.uint16), right_grad.astype(dtype).view(np.uint16))


@pytest.mark.parametrize("exponent", [-30, -12, 0, 4])
def test_losses_from_1e_minus_30_to_1e4_neither_underflow_nor_overflow(exponent):
    """Two classes and logits so far apart that every loss is about 10^exponent, with p = 5 in float32."""
    gap = 10.0**exponent if exponent == 4 else -math.log(math.expm1(10.0**exponent))
    x = np.zeros((1, 2, 8, 40), np.float32)
    x[:, 1] = gap if exponent == 4 else -gap
    y = np.zeros((1, 8, 40), np.uint8)
    value, grad = lal_value_and_grad(x, y, p=5, engine="numba")
    right, right_grad = lal_value_and_grad(x.astype(np.float64), y, p=5, engine="array")
    assert 0.9 * 10.0**exponent < right < 1.1 * 10.0**exponent
    np.testing.assert_allclose(value, right, rtol=1e-4 if exponent < 0 else 1e-6)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-4 if exponent < 0 else 1e-5)
    assert (grad != 0).all()


def units_of_a_sure_prediction(dtype, seed):
    """How far gradients are from truth in eps (1 + max |logit|), relatively, where every margin is about 50."""
    seeded = np.random.default_rng(seed)
    y = seeded.integers(0, 3, (1, 6, 7))
    x = seeded.uniform(-27, -22, (1, 3, 6, 7))
    np.put_along_axis(x, y[:, None], seeded.uniform(22, 27, (1, 1, 6, 7)), 1)
    x = x.astype(dtype)
    midpoint, rest = truth.doubles(truth.value_and_grad(x, y, kernel_size=3).grad)[0]
    grad = lal_value_and_grad(x, y, kernel_size=3, engine="numba")[1]
    read = abs(midpoint) > 100 * np.finfo(dtype).tiny
    error = abs((grad - midpoint) - rest)[read] / abs(midpoint)[read]
    return error.max() / (EPS[dtype] * (1 + abs(x).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_roundings_of_a_margin_are_not_seen_p_times_over(dtype, monkeypatch):
    """(17) allows 8; the typical margins are what keeps it well below, and without them it would not be."""
    assert max(units_of_a_sure_prediction(dtype, seed) for seed in range(5)) < 4
    monkeypatch.setattr(loops, "typical_margins", lambda x, *_: np.zeros((len(x), x.shape[1] + 1), dtype))
    assert max(units_of_a_sure_prediction(dtype, seed) for seed in range(5)) > 4


def test_weights_that_are_subnormal_are_still_read():
    """At 31 x 31 and sigma = 1 the outermost weights of float32 are subnormal: too small to see, but not for a NaN."""
    x, y = np.zeros((1, 2, 1, 31), np.float32), np.zeros((1, 1, 31), np.uint8)
    x[..., 14] = np.nan
    ell = lal_loss(x, y, kernel_size=31, reduction="none", engine="numba")[0, 0]
    weight = np.exp(-0.5 * np.arange(31.0) ** 2).astype(np.float32)
    assert 0 < weight[14] < np.finfo(np.float32).smallest_normal
    assert np.array_equal(np.isnan(ell), weight[abs(np.arange(31) - 14)] > 0)


# ---- compilation --------------------------------------------------------------------------------------


def _python(code, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def test_importing_the_package_imports_no_numba_and_the_engine_compiles_nothing():
    code = (
        "import sys, lalref; assert 'numba' not in sys.modules\n"
        "from lalref.engines import loops_kernels as k, loops_maps as m, loops_probability as q\n"
        "assert not any(f.signatures for f in (k.forward, k.backward, m.power_sum, q.pool_probability))"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the user's folder is found otherwise on Windows")
def test_compiled_code_is_kept_in_the_users_folder_where_none_may_be_made_beside_the_source(tmp_path):
    """As in a read-only installation, but so that even root can't: a file has the name of the folder."""
    package, home = tmp_path / "site" / "lalref", tmp_path / "home"
    source = Path(loops.__file__).parents[1]
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "engines" / "__pycache__").write_text("not a folder")
    home.mkdir()
    code = (
        "import numpy as np, lalref, lalref.engines.loops_maps as m\n"
        "loss = lalref.LocallyAdaptiveLoss(engine='numba')\n"
        "loss.value_and_grad(np.zeros((1, 2, 4, 4), 'f'), np.zeros((1, 4, 4), int))\n"
        "print(sum(m.power_sum.stats.cache_hits.values()), lalref.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    for hits in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [hits, str(package / "__init__.py")]
    assert list(home.rglob("loops_kernels.forward*.nbc"))
    assert (package / "engines" / "__pycache__").is_file()


# ---- the arithmetic that the loops bring along --------------------------------------------------------


@numba.njit
def _exp_of(x, out):
    for i in range(0, len(x), LANES):
        store(out, i, loops_math.exp_of_sum(load(x, i), fill(x, 0)))


@numba.njit
def _log1p_of(x, out):
    for i in range(0, len(x), LANES):
        store(out, i, loops_math.log1p_not_negative(load(x, i)))


@pytest.mark.parametrize(("dtype", "lowest"), [(np.float32, -110), (np.float64, -760)])
def test_exp_is_right_to_about_an_ulp_down_to_the_last_subnormal(dtype, lowest):
    x = np.linspace(lowest, 0, 1 << 16).astype(dtype)
    x[:3] = -np.inf, np.nan, -1e30
    out = np.empty_like(x)
    _exp_of(x, out)
    right = np.exp(x.astype(np.longdouble))
    assert out[0] == out[2] == 0
    assert np.isnan(out[1])
    assert out[-1] == 1
    assert np.nanmax(abs(out - right) / np.spacing(right.astype(dtype))) < 1.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p_keeps_the_relative_accuracy_of_tiny_numbers(dtype):
    x = np.concatenate([10.0 ** np.linspace(-37, 4, 1 << 15), np.linspace(0, 30, 1 << 15)]).astype(dtype)
    x[:2] = 0, np.nan
    out = np.empty_like(x)
    _log1p_of(x, out)
    right = np.log1p(x.astype(np.longdouble))
    assert out[0] == 0
    assert np.isnan(out[1])
    assert np.nanmax(abs(out - right) / np.spacing(right.astype(dtype))) < 3


def test_compiled_code_is_kept_only_while_no_room_of_the_engine_changes(tmp_path):
    """numba looks at the function's own file; an upgrade that changes what it calls must not run the old code."""
    rooms = Path(loops_cache.__file__).parent
    for file in rooms.glob("loops*.py"):
        shutil.copy(file, tmp_path)
    assert loops_cache.sources_digest(tmp_path) == loops_cache.STAMP
    (tmp_path / "loops_pool.py").write_text("# changed\n")
    assert loops_cache.sources_digest(tmp_path) != loops_cache.STAMP
    kept = [
        f
        for module in (loops_kernels, loops_maps, loops_margins, loops_probability)
        for f in vars(module).values()
        if hasattr(f, "_cache")
    ]
    kept = [f for f in kept if hasattr(f._cache, "_cache_file")]
    assert len(kept) == 8
    assert {f._cache._cache_file._source_stamp for f in kept} == {loops_cache.STAMP}
    assert all(loops_cache.STAMP[:12] in f._cache._cache_file._index_name for f in kept)


def test_whoever_waits_for_the_first_compilation_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loops_cache, "_folder", tmp_path / "cache")
    monkeypatch.setattr(loops_cache, "_asked", set())
    assert loops_cache.compile_seconds() == {}
    with caplog.at_level("INFO", "lalref"):
        for _ in range(2):
            with loops_cache.first_call(np.float16, "logits", "gradient"):
                pass
    assert len(caplog.messages) == 1
    assert "compiling for float32, once" in caplog.text
    assert loops_cache.compile_seconds().keys() == {"float32"}
    monkeypatch.setattr(loops_cache, "_asked", set())  # the next process finds it on disk
    with loops_cache.first_call(np.float32, "logits", "value"):
        pass
    assert len(caplog.messages) == 1
    with caplog.at_level("INFO", "lalref"), loops_cache.first_call(np.float32, "probabilities", "value"):
        pass
    assert "compiling for float32 probabilities, once" in caplog.messages[1]


def test_what_a_gradient_compiles_after_a_value_is_added_to_what_that_took(tmp_path, monkeypatch):
    monkeypatch.setattr(loops_cache, "_folder", tmp_path)
    monkeypatch.setattr(loops_cache, "_asked", set())
    now = iter([0.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr(loops_cache.time, "process_time", lambda: next(now))
    for what in ("value", "gradient"):
        with loops_cache.first_call(np.float16, "logits", what):
            pass
    assert loops_cache.compile_seconds() == {"float32": 7.0}
