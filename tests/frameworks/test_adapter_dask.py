"""dask arrays: lazily, chunk by chunk, the whole's value and gradient."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lalref import LocallyAdaptiveLoss
from lalref.oracle.inputs import VOID, eighths, scattered, weights

da = pytest.importorskip("dask.array")

import dask  # noqa: E402

from lalref.adapters.dask import dask_value_and_grad  # noqa: E402

X, Y, W = eighths((2, 3, 14, 11), 1), scattered((2, 14, 11), 2, 3, VOID), weights((2, 14, 11), 3)


@pytest.mark.parametrize("chunks", [(1, 3, 5, 4), (2, 2, 1, 11), (1, 1, 14, 1), (2, 3, 14, 11)], ids=str)
@pytest.mark.parametrize("options", [{}, {"stride": 3, "p": 2.5}, {"axis": -1}], ids=str)
def test_chunks_of_any_size_give_the_wholes_answer(chunks, options):
    """Chunks smaller than a window, no multiple of the stride, and cut through the classes."""
    loss = LocallyAdaptiveLoss(**options)
    x = X
    if "axis" in options:
        x, chunks = np.moveaxis(X, 1, -1), (chunks[0], *chunks[2:], chunks[1])
    lazy = da.from_array(x, chunks=chunks)
    value, grad = dask_value_and_grad(
        loss, lazy, da.from_array(Y, chunks=6), pixel_weight=da.from_array(W, chunks=5), grad_output=1.5
    )
    assert grad.chunks == lazy.chunks
    found, found_grad = dask.compute(value, grad, scheduler="threads", num_workers=2)
    right, right_grad = loss.value_and_grad(x, Y, pixel_weight=W, grad_output=1.5)
    np.testing.assert_allclose(found, right, rtol=1e-13)
    np.testing.assert_allclose(found_grad, right_grad, rtol=0, atol=1e-13 * abs(right_grad).max())


def test_nothing_is_read_before_it_is_asked_for():
    def never(block):
        raise AssertionError("read")

    x = da.zeros((1, 2, 8, 8), chunks=4).map_blocks(
        never, dtype="float32", meta=np.empty((0,) * 4, "float32")
    )
    value, grad = dask_value_and_grad(LocallyAdaptiveLoss(), x, da.zeros((1, 8, 8), dtype="uint8"))
    assert (value.dtype, grad.dtype, grad.shape) == (np.float32, np.float32, x.shape)
    with pytest.raises(AssertionError, match="read"):
        value.compute()


def test_the_door():
    x, y = da.from_array(X, chunks=5), da.from_array(Y, chunks=5)
    with pytest.raises(TypeError, match=r"labels must be a dask array; got ndarray.*from_array"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, Y)
    with pytest.raises(ValueError, match=r"labels must have the shape of logits without class axis"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, da.concatenate([y, y], axis=1))
    with pytest.raises(ValueError, match="no parts to combine"):
        dask_value_and_grad(LocallyAdaptiveLoss(reduction="none"), x, y)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        dask_value_and_grad(LocallyAdaptiveLoss(), x, y + np.uint8(9))[0].compute()


LARGE = """
import resource, sys
from pathlib import Path
import dask, dask.array as da, numpy as np
from lalref import LocallyAdaptiveLoss
from lalref.adapters.dask import dask_value_and_grad
from lalref.bench.scenes import scene

def lazily(x, y, side):
    x = da.from_array(x, chunks=(1, 19, side, side), name=False)
    return dask_value_and_grad(loss, x, da.from_array(y, chunks=side, name=False))[0]

loss, side = LocallyAdaptiveLoss(), int(sys.argv[2])
logits, labels, strip, y = scene(4000, Path(sys.argv[1]) / "logits")
right = loss.parts(strip, y).value
with dask.config.set(scheduler="threads", num_workers=2):
    lazily(strip[..., :500], y[..., :500], 250).compute()  # what is compiled and started, and its memory
    value = lazily(logits, labels, side)
    status = (line.split() for line in open("/proc/self/status"))
    used = next(int(words[1]) * 1024 for words in status if words[0] == "VmData:")
    resource.setrlimit(resource.RLIMIT_DATA, (used + logits.nbytes // 4,) * 2)
    np.testing.assert_allclose(value.compute(), right, rtol=2e-6)
print(logits.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is Linux's")
@pytest.mark.parametrize("side", [500, 4000])
def test_a_scene_in_a_quarter_of_its_memory(tmp_path, side):
    """608 MB of float16 logits, whose loss is that of one strip worked out whole; as one chunk they do not fit."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LARGE, str(tmp_path), str(side)]
    done = subprocess.run(command, env=env, timeout=300, capture_output=True, text=True, check=False)
    (tmp_path / "logits").unlink()
    if side == 4000:
        assert done.returncode != 0
        assert "MemoryError" in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout) == 608_000_000
