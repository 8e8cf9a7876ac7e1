"""Measure what notebook 4 draws: python notebooks/roofline.py writes notebooks/roofline.json (a minute).

Times are minima over repeats, nine of the numba engine and three of the array engine, two threads, for the value and
gradient of the benchmark's logits. Run it with nothing else running. A notebook cannot do this itself: its picture
would be another one each time.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from lalref import LocallyAdaptiveLoss
from lalref.bench.inputs import labels, logits

SHAPE = (2, 21, 321, 321)
WINDOWS = (3, 5, 7, 15, 31)


def least(call, repeats):
    """Seconds of the fastest of `repeats` calls, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def main():
    x, y = logits(SHAPE), labels("blobs", (SHAPE[0], *SHAPE[2:]), SHAPE[1])
    large = np.ones(2**27, np.float32)  # 512 MiB, beyond any cache
    other, square = np.zeros_like(large), torch.ones(3000, 3000)
    found = {
        "shape": SHAPE,
        "bytes per second": 2 * large.nbytes / least(lambda: np.copyto(other, large), 5),
        "flops per second": 2 * 3000**3 / least(lambda: square @ square, 5),
        "numba seconds": {},
        "array seconds": {},
    }
    for k in WINDOWS:
        loss = LocallyAdaptiveLoss(kernel_size=k, engine="numba")
        found["numba seconds"][k] = least(lambda loss=loss: loss.value_and_grad(x, y), 9)
    for k in WINDOWS[:3]:
        loss = LocallyAdaptiveLoss(kernel_size=k, engine="array")
        found["array seconds"][k] = least(lambda loss=loss: loss.value_and_grad(x, y), 3)
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.3g}"))
    Path(__file__).with_suffix(".json").write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
