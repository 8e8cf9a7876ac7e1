"""What a scene larger than memory costs: its loss, or loss and gradient, tile by tile, in seconds and in memory.

    python -m lalref.bench.scenes [--side 4000] [--gradient] [--folder /tmp]

The scene is made from a formula: one strip, void between strips, again and again, so that the loss of the whole
is that of the strip, which is worked out at once and compared. Files are deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lalref import LocallyAdaptiveLoss
from lalref.bench import inputs
from lalref.scenes import scene_parts, scene_value_and_grad

Array = Any
CLASSES, ROWS = 19, 250  # of a strip
STATUS = Path("/proc/self/status")  # Linux tells here what memory a process has


def scene(side: int, file: Path) -> tuple[Array, Array, Array, Array]:
    """Write logits (1, CLASSES, side, side) float16 to `file`; return them, labels, and both of one strip.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lalref.bench.scenes import scene
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logits, labels, strip, _ = scene(500, Path(folder) / "logits")
    >>> logits.shape, labels.shape, strip.shape
    ((1, 19, 500, 500), (1, 500, 500), (1, 19, 250, 500))
    """
    if side < ROWS or side % ROWS:
        raise ValueError(f"side={side} is not allowed: it must be a multiple of {ROWS}")
    strip = inputs.logits((1, CLASSES, ROWS, side)).astype(np.float16)
    y = inputs.labels("blobs", (1, ROWS, side), CLASSES)
    y[:, -8:] = inputs.VOID  # no window of one strip reads the next
    with file.open("wb") as out:
        for plane in strip[0]:
            for _ in range(side // ROWS):
                out.write(plane.tobytes())
    logits = np.memmap(file, np.float16, "r", shape=(1, CLASSES, side, side))
    return logits, np.tile(y, (1, side // ROWS, 1)), strip, y


def main(side: int, gradient: bool, folder: str | None, tile: int = 512) -> tuple[float, int]:
    """Print and return seconds, and bytes held beyond what the program had, of the loss or of it and its gradient.

    One of the two, for the first would leave the second memory that it need not ask for again.

    Raises
    ------
    ValueError
        The loss or the gradient is not that of a strip worked out at once.
    """
    loss = LocallyAdaptiveLoss()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        logits, labels, strip, y = scene(side, Path(place) / "logits")
        print(f"{logits.shape} float16, {logits.nbytes / 1e9:.2f} GB; tiles of {tile}")
        small = strip[..., :32, :32].astype(np.float32), y[..., :32, :32]
        loss.value_and_grad(*small, total=loss.parts(*small))  # compiles
        grad = np.memmap(Path(place) / "grad", np.float32, "w+", shape=logits.shape) if gradient else None
        start = time.perf_counter()
        with _memory() as held:
            if grad is None:
                value = scene_parts(loss, logits, labels, tile=tile, progress=True).value
            else:
                value = scene_value_and_grad(loss, logits, labels, grad, tile=tile, progress=True)
        seconds, most = time.perf_counter() - start, max(held) - held[0]
        told = f"{most / 1e6:.0f} MB beyond what the program had" if any(held) else "memory not told here"
        print(f"{'loss and gradient' if gradient else 'loss'}: {seconds:.1f} s, {told}")
        right = loss(strip, y)  # not before, for its memory would be used again
        if not abs(value / right - 1) < 1e-5:
            raise ValueError(f"the loss is {value}, and that of the strip {right}")
        if grad is not None:
            strips = side // ROWS  # whose mean it is
            right = loss.value_and_grad(strip.astype(np.float32), y)[1] / strips
            largest = 1e-5 * np.abs(right).max()
            for i in range(strips):
                if not np.abs(grad[:, :, ROWS * i : ROWS * (i + 1)] - right).max() < largest:
                    raise ValueError(f"the gradient of strip {i} is not that of the strip alone")
    return seconds, most


@contextlib.contextmanager
def _memory() -> Iterator[list[int]]:
    """The bytes of this process's own memory, again and again; what is mapped from files is not its own."""
    done = threading.Event()

    def now() -> int:
        try:
            lines = STATUS.read_text().splitlines()
        except OSError:  # not Linux: nothing is known
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

    held = [now()]

    def look() -> None:
        while not done.wait(0.005):
            held.append(now())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield held
    finally:
        done.set()
        looking.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time a scene larger than memory.")
    parser.add_argument("--side", type=int, default=4000, help=f"pixels, a multiple of {ROWS}")
    parser.add_argument(
        "--gradient", action="store_true", help="the loss and its gradient, into a file of twice the size"
    )
    parser.add_argument("--folder", help="where the files are made; the system's folder for such if not said")
    given = parser.parse_args()
    main(given.side, given.gradient, given.folder)
