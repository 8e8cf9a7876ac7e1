"""A scene larger than memory, for tests: a program in steps, each a process of its own, and how tests run a step.

    python large_scene.py FOLDER make | tiles | dask CHUNK | whole

`make` writes 608 MB of float16 logits. `tiles` and `dask` write their loss and its gradient, under a limit of a quarter
of that, beyond what the program has when it begins. `whole` works out the image at once and compares everything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lalref import LocallyAdaptiveLoss
from lalref.scenes import scene_parts, scene_value_and_grad

SHAPE = C, H, W = 19, 4000, 4000
QUARTER = 2 * C * H * W // 4
LOSS = LocallyAdaptiveLoss()

needs_linux_and_memory = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 * 10**9,
    reason="the limit on memory is Linux's, and to work out the image at once takes 4 GB",
)


def large_scene(folder, *step):
    """Run a step, and return what it prints."""
    command = [sys.executable, __file__, str(folder), *step]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- The steps --------------------------------------------------------------------------------------------------


def make(folder):
    """Objects of 37 by 53 pixels, some of them void: every cut of the scene goes through some."""
    i, j = np.arange(H, dtype=np.uint16)[:, None], np.arange(W, dtype=np.uint16)
    eighths = (np.arange(256) / 8 - 16).astype(np.float16)
    with (folder / "logits").open("wb") as file:
        for c in range(C):
            mixed = (i * np.uint16(40503 + 2 * c)) ^ (j * np.uint16(30011 + 6 * c))
            file.write(eighths[mixed >> 8].tobytes())
    y = ((i // 37 + 5 * (j // 53)) % (C + 1)).astype(np.uint8)
    np.save(folder / "labels", np.where(y == C, np.uint8(255), y)[None])


def logits_of(folder):
    return np.memmap(folder / "logits", np.float16, "r", shape=(1, *SHAPE))


def others_of(folder, mode):
    grad = np.memmap(folder / "grad", np.float32, mode, shape=(1, *SHAPE))
    return np.load(folder / "labels.npy"), grad


def limit():
    import resource

    status = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    used = next(int(words[1]) * 1024 for words in status if words[0] == "VmData:")
    resource.setrlimit(resource.RLIMIT_DATA, (used + QUARTER,) * 2)
    try:
        np.ones(QUARTER * 5 // 4, np.uint8)
    except MemoryError:
        return
    sys.exit("the limit does not hold")


def tiles(folder):
    labels, grad = others_of(folder, "w+")
    small = np.zeros((1, C, 64, 64), np.float32), np.zeros((1, 64, 64), np.uint8)
    LOSS.value_and_grad(*small, total=scene_parts(LOSS, *small))  # compiles
    limit()
    value = scene_value_and_grad(LOSS, logits_of(folder), labels, grad)
    (folder / "value").write_text(json.dumps(float(value)))


def dask(folder, chunk):
    import dask
    import dask.array as da

    from lalref.adapters.dask import dask_value_and_grad

    labels, grad = others_of(folder, "w+")

    def read(block_info=None):  # from_array would copy the whole file into memory
        return logits_of(folder)[tuple(slice(*found) for found in block_info[None]["array-location"])]

    def lazily(side, chunk):
        cut = (chunk,) * (side // chunk)
        none = np.empty((0,) * 4, np.float16)
        x = da.map_blocks(read, chunks=(1, C, cut, cut), dtype=np.float16, meta=none)
        return dask_value_and_grad(LOSS, x, da.from_array(labels[:, :side, :side], chunks=chunk))

    with dask.config.set(scheduler="threads", num_workers=2):
        dask.compute(*lazily(80, 40))  # starts threads too
        limit()
        value, lazy = lazily(H, int(chunk))
        (folder / "value").write_text(json.dumps(float(value.compute())))
        da.store(lazy, grad, lock=False)


def whole(folder):
    labels, grad = others_of(folder, "r")
    right, right_grad = LOSS.value_and_grad(logits_of(folder).astype(np.float32), labels)
    np.testing.assert_allclose(json.loads((folder / "value").read_text()), right, rtol=2e-6)
    largest = max(abs(plane).max() for plane in right_grad[0])
    for found, plane in zip(grad[0], right_grad[0], strict=True):
        np.testing.assert_allclose(found, plane, rtol=0, atol=2e-6 * largest)
    for name in ("logits", "grad"):  # 1.8 GB, which pytest would keep
        (folder / name).unlink()
    print("equal")


if __name__ == "__main__":
    steps = {"make": make, "tiles": tiles, "dask": dask, "whole": whole}
    steps[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])
