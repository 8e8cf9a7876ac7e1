"""The geometry of a call of the cuda engine: image, windows, tiles, shared memory, groups of channels.

Whole numbers only, worked out on the host before any launch; no array is read here and nothing is launched.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lalref.arrays import Array
from lalref.options import Options

MOST_AXES, MOST_REACH = 2, 4095  # spatial axes; pixels that a window reaches on each side
MOST_LENGTH = 1 << 30  # of an axis: a pixel's place and a stride, no longer than that, add up in 31 bits
MOST_TILES = (1 << 31) - 1  # blocks of one launch
SHARED_MEMORY = 48 << 10  # bytes a block, on every device without asking
SCRATCH = 32 << 20  # bytes at most for the divided gradient on its way: less than the L2 cache of an H100
CHANNELS = 2  # pooled at a time; with 4 `slopes` takes more registers than two blocks leave it
TILE, WIDE_TILE = (32, 8), (256, 1)  # columns and rows of a block, one thread each
MOST_KINDS = 8  # classes of one tile that are pooled one by one
MOST_LABELS = 1 << 23  # that a Kind of kernels.cu, a label beside 8 bits, can tell apart

# struct Call of kernels.cu, passed by value
CALL = np.dtype(
    [(f"{array}_{axis}", np.int64) for array in ("x", "grad") for axis in "nchw"]
    + [("sigma", np.float64), ("alpha", np.float64)]
    + [(name, np.int32) for name in ("C", "H", "W", "rows", "columns", "stride_h", "stride_w")]
    + [(name, np.int32) for name in ("reach_h", "reach_w", "most", "span")],
    align=True,
)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One call's logits as images (N, C, H, W), and the tiles that they are cut into.

    Attributes
    ----------
    N : int
        Images: 1 where there are no spatial axes, for then the batch is a row of pixels.
    call : array (1,) of CALL
    full : array (1,) of CALL
        The same for counting members: every weight 1, the radius not cut.
    block : (int, int)
        Columns and rows of a tile, a thread for each.
    channels : int
        How many are pooled at a time.
    size : int
        Bytes of a number of the working dtype.
    """

    N: int
    call: Any
    full: Any
    block: tuple[int, int]
    channels: int
    size: int

    @classmethod
    def of(cls, logits: Array, grid: Sequence[int], options: Options, dtype: np.dtype[Any]) -> Geometry:
        """Work out the geometry for logits (N, C, *S), windows on `grid` and the working `dtype`."""
        N, C, *S = logits.shape
        full = np.zeros(1, CALL)
        full["C"], full["alpha"] = C, options.label_smoothing
        full["H"], full["W"] = H, _ = _as_image(S, 1) if S else (1, N)
        full["rows"], full["columns"] = _as_image(grid, 1) if S else (1, N)
        strides = [min(s, max(1, length)) for s, length in zip(options.strides(len(S)), S, strict=True)]
        full["stride_h"], full["stride_w"] = _as_image(strides, 1)
        full["reach_h"], full["reach_w"] = _as_image(reach(S, options), 0)
        set_steps(full, "x", logits)
        call = full.copy()
        if options.sigma is not None:
            call["sigma"], far = options.sigma, _far(options.sigma, dtype)
            for side in ("reach_h", "reach_w"):
                call[side] = np.minimum(call[side], far)
        r_h, r_w = int(call["reach_h"][0]), int(call["reach_w"][0])
        # a label that is none, with check=False, is C
        by_kind = options.strides(len(S)) == (1,) * len(S) and C < MOST_LABELS
        most = _most_kinds(r_h, r_w) if by_kind else 0
        wide = most > 0 and r_w > 3
        block, channels = WIDE_TILE if wide or H == 1 else TILE, CHANNELS
        spans = [_span(each, block, channels, dtype.itemsize) for each in (call, full)]
        call["span"], full["span"] = spans
        call["most"] = full["most"] = most if min(spans) > 0 else 0
        return cls(N if S else 1, call, full, block, channels, dtype.itemsize)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of all windows and of all pixels of one image."""
        (w, h), call = self.block, self.call[0]
        return (
            -(-int(call["rows"]) // h) * -(-int(call["columns"]) // w),
            -(-int(call["H"]) // h) * -(-int(call["W"]) // w),
        )

    @property
    def groups(self) -> tuple[int, int]:
        """How many images and channels of slopes are kept at a time: in `SCRATCH`, at most a quarter of all.

        One plane is the least.
        """
        C, plane = (
            int(self.call["C"][0]),
            self.size * int(self.call["rows"][0]) * int(self.call["columns"][0]),
        )
        planes = max(1, min(SCRATCH // max(1, plane), self.N * C // 4))
        return (planes // C, C) if planes >= C else (1, planes)

    def shared_bytes(self, call: Any) -> int:
        """Shared memory of a block: the table of weights and, for pooling by class, the column sums."""
        span, reach_w = int(call["span"][0]), int(call["reach_w"][0])
        sums = (span + _beyond(span, reach_w)) * self.channels * self.block[1] * (self.block[0] + 2 * reach_w)
        return self.size * (_farther(call) + 1 + (sums if call["most"][0] else 0))


def most_tiles(logits: Array, options: Options) -> int:
    """How many tiles a launch has at most, for logits (N, C, *S) of up to `MOST_LENGTH` along each axis."""
    N, _, *S = logits.shape
    pixels: int = N * math.prod(S)
    if pixels <= MOST_TILES:  # then so are the tiles
        return pixels
    both = [Geometry.of(logits, S, options, np.dtype(dtype)) for dtype in ("float32", "float64")]
    return max(geometry.N * max(geometry.tiles) for geometry in both)


def reach(S: Sequence[int], options: Options) -> list[int]:
    """r of each axis, no longer than the image."""
    return [max(0, min(r, length - 1)) for r, length in zip(options.radii(len(S)), S, strict=True)]


def set_steps(call: Any, name: str, array: Array) -> None:
    """Write down how far apart neighbours of `array` (N, C, *S) are, in elements."""
    n, c, *S = (step // array.dtype.itemsize for step in array.strides)
    n, (h, w) = (n, _as_image(S, 0)) if S else (0, (0, n))  # without axes the batch is a row of pixels
    for axis, step in zip("nchw", (n, c, h, w), strict=True):
        call[f"{name}_{axis}"] = step


def _as_image(axes: Sequence[int], missing: int) -> tuple[int, int]:
    """What belongs to each of up to two spatial axes, as rows and columns."""
    H, W = (missing,) * (MOST_AXES - len(axes)) + tuple(axes)
    return H, W


@functools.lru_cache(64)
def _far(sigma: float, dtype: np.dtype[Any]) -> int:
    """The largest distance up to `MOST_REACH` whose weight (1) does not round to 0."""
    with np.errstate(all="ignore"):
        w = np.exp(-0.5 * (np.arange(MOST_REACH + 1) / sigma) ** 2).astype(dtype)
    return int(np.count_nonzero(w > 0)) - 1


def _most_kinds(r_h: int, r_w: int) -> int:
    """How many classes of a tile are pooled one by one before going cell by cell is cheaper.

    Counted in reads: a cell of the window costs its value and a quarter of a label; a class costs the cells
    of a column, a store and two reads for each column sum, and two barriers, put at 8.
    """
    by_cell = 1.25 * (2 * r_h + 1) * (2 * r_w + 1)
    by_kind = 1.25 * (2 * r_h + 1) + 3 * r_w + 8
    return min(MOST_KINDS, int(by_cell / by_kind))


def _span(call: Any, block: tuple[int, int], channels: int, size: int) -> int:
    """For how many t there is room for every column's U_t and what `_beyond` adds; 0 where there is for none."""
    reach_w = int(call["reach_w"][0])
    one = size * channels * block[1] * (block[0] + 2 * reach_w)
    room = (SHARED_MEMORY - size * (_farther(call) + 1)) // one
    if reach_w + 1 + _beyond(reach_w + 1, reach_w) <= room:
        return reach_w + 1
    return max(0, min(room - 1, reach_w))


def _beyond(span: int, reach_w: int) -> int:
    """How many more numbers a column keeps: one for each four of its U_t, or its sum so far where not all fit."""
    return (-(-span // 4) if span > 4 else 0) if span > reach_w else 1


def _farther(call: Any) -> int:
    return max(int(call["reach_h"][0]), int(call["reach_w"][0]))
