"""The cuda engine: which kernels of kernels*.cu a call needs, on what arrays, in which order.

The arithmetic is in the .cu files, the geometry in `kernels_geometry`.
Without a GPU the same text and this same module run on NumPy arrays: tests replace `load`, which compiles,
and no more. Nothing here waits for the device or copies to it, and CuPy is imported when it is asked for.
The front door has made the logits' device the current one.
docs/cuda.md tells how the kernels work.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from lalref.arrays import Array, Namespace, dtype_name, epsilon, library, namespace
from lalref.engines.kernels_geometry import (
    MOST_AXES,
    MOST_LENGTH,
    MOST_REACH,
    MOST_TILES,
    Geometry,
    most_tiles,
    reach,
    set_steps,
)
from lalref.engines.pooling import centre
from lalref.minkowski import Parts
from lalref.options import Options

TAKES_16_BIT = True

FILES = tuple(
    Path(__file__).with_name(f"kernels{part}.cu")
    for part in ("", "_pooling", "_logits", "_probabilities", "_stage3")
)  # in the order in which the compiler reads them
COMPILER_OPTIONS = ("-std=c++17",)
NULL = np.uint64(0)  # a pointer to nothing

# Logits as they are stored, and the type that they are worked out in, by dtype.
TYPES = {
    "float16": ("float16", "float"),
    "bfloat16": ("bfloat16", "float"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}


# These ask for no shared memory at launch; some of their own would be too much beside what others ask for.
STAGE_3 = ("tops", "fold_tops", "powers", "fold_powers", "shares")
NONE_SHARED = ("list_kinds", "pixels", "send", "spread", *STAGE_3)
SPACES = ("logits", "probabilities", "stage 3")  # what is compiled together
THREADS, MOST_BLOCKS = 256, 1024  # of stage 3: threads of a block, and how many of those


@functools.cache
def kernel_names(dtype: str, space: str, channels: int = 0) -> dict[str, str]:
    """Return the template instances that a call uses, by kernel; `channels` are pooled at a time.

    `space` is one of `SPACES`, and `dtype` that of the logits, or for stage 3 of the losses.
    """
    X, T = TYPES[dtype]
    if space == "stage 3":
        return {name: name if name.startswith("fold") else f"{name}<{T}>" for name in STAGE_3}
    names = {"list_kinds": "list_kinds", "divisors": f"divisors<{T}>"}
    if space == "logits":
        names["weights"] = "divisors<double>"
        return names | {name: f"{name}<{X}, {T}, {channels}>" for name in ("losses", "slopes", "gather")}
    names |= {name: f"{name}<{X}, {T}>" for name in ("pixels", "spread")}
    return names | {name: f"{name}<{T}>" for name in ("merge", "send", "receive")}


def source() -> str:
    """Return the text of the kernels, each line still knowing its file."""
    return "".join(f'#line 1 "{file.name}"\n{file.read_text(encoding="utf-8")}' for file in FILES)


@functools.cache
def load(dtype: str, space: str, channels: int = 0) -> Any:
    """Return compiled kernels; ``.get_function(name)(grid, block, args, shared_mem=)`` launches one."""
    import cupy

    names = tuple(dict.fromkeys(kernel_names(dtype, space, channels).values()))
    return cupy.RawModule(code=source(), options=COMPILER_OPTIONS, name_expressions=names)


def why_not(logits: Array, options: Options) -> str:
    """Say why this engine can't serve these logits (N, C, *S), and what to do; empty if it can."""
    if importlib.util.find_spec("cupy") is None:
        clone = "in a clone of lalref, pip install -c constraints.txt -e '.[cuda13]'"
        return f"needs CuPy: {clone} or, for older drivers, '.[cuda12]'"
    try:
        import cupy
    except Exception as error:  # of whatever kind: a library of CUDA's that is missing or of another version
        return f"needs CuPy, which is installed but can't be imported ({error}): python -c 'import cupy' says more"
    if not cupy.cuda.is_available():
        return "needs a GPU, and no CUDA device is visible to CuPy: check the driver and CUDA_VISIBLE_DEVICES"
    if library(namespace(logits)) != "cupy":
        return (
            f"takes CuPy arrays, got {type(logits).__module__}.{type(logits).__qualname__}: "
            "cupy.asarray() copies an array to the device, cupy.from_dlpack() shares one that is there"
        )
    if (ndim := logits.ndim - 2) > MOST_AXES:
        return f'takes up to {MOST_AXES} spatial axes, got {ndim}: use engine="array"'
    N, *lengths = logits.shape
    if ndim == 0:  # the batch is a row of pixels
        lengths.append(N)
    if (longest := max(lengths)) > MOST_LENGTH:
        return f'takes up to {MOST_LENGTH} pixels along an axis, and so many classes, got {longest}: use engine="array"'
    if (tiles := most_tiles(logits, options)) > MOST_TILES:
        return f'takes batches of up to {MOST_TILES} tiles, got {tiles}: use engine="array", or fewer images at a time'
    if (farthest := max((0, *reach(logits.shape[2:], options)))) > MOST_REACH:
        return f'takes windows that reach up to {MOST_REACH} pixels, got {farthest}: use engine="array"'
    return ""


def window_losses(logits: Array, labels: Array, valid: Array, options: Options) -> Array:
    """ell of every valid window, 0 elsewhere; (N, *grid) in the working dtype."""
    return _Work.of(logits, labels, valid, options).forward(keep=False).ell


def window_losses_vjp(logits: Array, labels: Array, valid: Array, options: Options, g: Array) -> Array:
    """The gradient that the windows send back to the logits; (N, C, *S) in the logits' dtype."""
    work = _Work.of(logits, labels, valid, options)
    return work.backward(work.forward(keep=True), g)


def value_and_grad(
    logits: Array,
    labels: Array,
    valid: Array,
    omega: Array | None,
    options: Options,
    grad_output: Any,
    total: Parts | None = None,
) -> tuple[Parts, Array]:
    """The parts of the value (8), and the gradient of the value times `grad_output`; stages 1 and 2 run once.

    `omega` (N, *grid) float64, or None where every valid window weighs 1; `total` as at the front door.
    """
    work = _Work.of(logits, labels, valid, options)
    kept = work.forward(keep=True)
    total = total or parts_of(kept.ell, omega, valid, options)
    return total, work.backward(kept, _shares(kept.ell, omega, valid, total, grad_output))


# --- Stage 3 ---------------------------------------------------------------------------------------------------------


def parts_of(ell: Array, omega: Array | None, valid: Array, options: Options) -> Parts:
    """`minkowski.parts` of the losses (N, *grid) of windows, in four launches."""
    xp, launch, blocks, windows = _windows(ell, omega, valid)
    exponent = np.float64(options.p), np.float64(epsilon(ell.dtype))
    partial = xp.empty((3, blocks), dtype=xp.float64)
    sums = xp.empty(3, dtype=xp.float64)  # max ell, S, sum(omega)
    count = xp.empty((), dtype=xp.int64)
    launch("tops", blocks, *windows, partial)
    launch("fold_tops", 1, partial, np.int32(blocks), sums, count)
    launch("powers", blocks, *windows, *exponent, sums, partial)
    launch("fold_powers", 1, partial, np.int32(blocks), sums)
    maximum, S, weight = (sums[i, ...] for i in range(3))  # 0-d
    return Parts(maximum, S, weight, count, options, dtype_name(ell.dtype))


def _shares(ell: Array, omega: Array | None, valid: Array, total: Parts, grad_output: Any) -> Array:
    """`minkowski.shares` times `grad_output`, 0 where not valid; like `ell`, in one launch."""
    xp, launch, blocks, windows = _windows(ell, omega, valid)
    exponent = np.float64(total.options.p), np.float64(epsilon(ell.dtype))
    maximum, S, weight, upstream = (
        xp.asarray(number, dtype=xp.float64)
        for number in (total.maximum, total.power_sum, total.weight, grad_output)
    )
    B = weight if total.options.reduction == "mean" else NULL
    g = xp.empty(ell.shape, dtype=ell.dtype)
    launch("shares", blocks, *windows, *exponent, maximum, S, B, upstream, g)
    return g


def _windows(ell: Array, omega: Array | None, valid: Array) -> tuple[Namespace, Any, int, tuple[Any, ...]]:
    """The namespace, launch(name, blocks, *args), how many blocks see all windows, and the windows as arguments."""
    xp, module = namespace(ell), load(dtype_name(ell.dtype), "stage 3")
    names, count = kernel_names(dtype_name(ell.dtype), "stage 3"), math.prod(ell.shape)

    def launch(name: str, blocks: int, *args: Any) -> None:
        module.get_function(names[name])((blocks,), (THREADS,), args, shared_mem=0)

    ell, valid = (xp.asarray(a, order="C") for a in (ell, valid))
    omega = NULL if omega is None else xp.asarray(omega, order="C")
    blocks = min(MOST_BLOCKS, max(1, -(-count // THREADS)))
    return xp, launch, blocks, (ell, valid, omega, np.int64(count))


# --- Stages 1 and 2 --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What `backward` needs of `forward`: small maps, the largest and the norm of each softmax, and more."""

    ell: Array  # (N, *grid)
    D: Array  # (N, *grid)
    weights: Any  # the sum of weights of each group, (N, *grid) float64, or NULL where D is it
    top: Array  # m of (17) for every window, or in probability space every pixel
    top_lo: Any  # what top's rounding left out, windows only
    norm: Array  # sum of exp(. - m)
    off: Array  # 1 - P_y, or 1 - u
    log_u: Array | None = None  # (N, *S)
    log_pooled: Array | None = None  # (N, *grid)


@dataclasses.dataclass(frozen=True)
class _Work:
    """One call: its arrays, its geometry, and how it is launched."""

    xp: Namespace
    logits: Array  # (N, C, *S), any strides
    labels: Array  # (N, *S) int32, contiguous
    centres: Array  # (N, *grid) int32: the label of each valid window, else -1
    options: Options
    dtype: np.dtype[Any]  # that is worked in
    geometry: Geometry

    @classmethod
    def of(cls, logits: Array, labels: Array, valid: Array, options: Options) -> _Work:
        xp = namespace(logits)
        labels = xp.astype(labels, xp.int32, copy=False)  # CuPy would not notice another dtype at launch
        centres = xp.astype(xp.where(valid, centre(labels, options), -1), xp.int32, copy=False)  # (N, *grid)
        dtype = np.dtype("float64" if dtype_name(logits.dtype) == "float64" else "float32")
        geometry = Geometry.of(logits, centres.shape[1:], options, dtype)
        labels, centres = (xp.asarray(a, order="C") for a in (labels, centres))
        return cls(xp, logits, labels, centres, options, dtype, geometry)

    def launch(self, name: str, blocks: int, *args: Any, call: Any = None) -> None:
        """Launch one kernel on `blocks` tiles; a None among `args` is where the call's geometry goes."""
        if blocks == 0:
            return
        geometry = self.geometry
        call = geometry.call if call is None else call
        which = dtype_name(self.logits.dtype), self.options.space, geometry.channels
        kernel = load(*which).get_function(kernel_names(*which)[name])
        args = tuple(call if a is None else a for a in args)
        shared = 0 if name in NONE_SHARED else geometry.shared_bytes(call)
        kernel((blocks,), geometry.block, args, shared_mem=shared)

    @functools.cached_property
    def kinds(self) -> Any:
        """(N, tiles, most + 1) int32: which classes each tile has; NULL where windows are pooled by cells."""
        most, tiles = int(self.geometry.call["most"][0]), self.geometry.tiles[1]
        if most == 0:
            return NULL
        kinds = self.xp.empty((self.geometry.N, tiles, most + 1), dtype=self.xp.int32)
        self.launch("list_kinds", self.geometry.N * tiles, self.labels, kinds, None)
        return kinds

    def divisor(self, count: bool) -> Array:
        """D of (7), or with `count` the size of each group; (N, *grid)."""
        D = self.map(self.centres)
        args = (self.labels, self.centres, self.kinds, D, None)
        geometry = self.geometry
        call = geometry.full if count else geometry.call
        self.launch("divisors", geometry.N * geometry.tiles[0], *args, call=call)
        return D

    def weights(self) -> Any:
        """The sum of weights of each group, (N, *grid) float64; NULL where that is D."""
        if self.options.normalize == "weights" or self.options.sigma is None:
            return NULL
        float64 = np.dtype("float64")
        geometry = Geometry.of(self.logits, self.centres.shape[1:], self.options, float64)
        wide = dataclasses.replace(self, dtype=float64, geometry=geometry)
        weights = wide.map(self.centres)
        wide.launch(
            "weights", geometry.N * geometry.tiles[0], self.labels, self.centres, wide.kinds, weights, None
        )
        return weights

    def map(self, like: Array) -> Array:
        """An empty map of the working dtype, shaped as `like`."""
        return self.xp.empty(like.shape, dtype=self.dtype)

    def forward(self, keep: bool) -> _Kept:
        """Stages 1 and 2; without `keep` only ell is worth reading."""
        windows, pixels = (self.geometry.N * tiles for tiles in self.geometry.tiles)
        count = self.options.normalize == "count"
        D, ell = self.divisor(count), self.map(self.centres)
        shared = (self.labels, self.centres, self.kinds, D)
        if self.options.space == "logits":
            kept = tuple(self.map(self.centres) for _ in range(4)) if keep else (NULL,) * 4
            weights = self.weights()
            self.launch("losses", windows, self.logits, *shared, weights, ell, *kept, None)
            return _Kept(ell, D, weights, *kept)
        top, norm, off, u, log_u = (self.map(self.labels) for _ in range(5))
        self.launch("pixels", pixels, self.logits, self.labels, top, norm, off, u, log_u, None)
        weights, log_pooled = self.divisor(False) if count else D, self.map(self.centres)
        self.launch("merge", windows, *shared, weights, off, u, log_u, ell, log_pooled, None)
        return _Kept(ell, D, weights, top, NULL, norm, off, log_u, log_pooled)

    def backward(self, kept: _Kept, g: Array) -> Array:
        """From g, the derivative with respect to each ell (N, *grid), to the gradient (N, C, *S)."""
        geometry, g = self.geometry, self.xp.asarray(g, order="C")
        grad = self.xp.empty(self.logits.shape, dtype=self.logits.dtype)
        call = geometry.call.copy()
        set_steps(call, "grad", grad)
        if self.options.space == "probabilities":
            windows, pixels = (geometry.N * tiles for tiles in geometry.tiles)
            sent, R = self.map(self.centres), self.map(self.labels)
            self.launch("send", windows, self.centres, kept.ell, kept.log_pooled, g, sent, None)
            maps = (self.labels, self.centres, self.kinds)
            self.launch("receive", pixels, *maps, kept.log_u, kept.log_pooled, g, sent, R, None)
            spread = (self.logits, self.labels, kept.top, kept.norm, kept.off, R, grad, None)
            self.launch("spread", pixels, *spread, call=call)
            return grad
        maps = (self.labels, self.centres, self.kinds)
        softmax = (kept.D, kept.weights, kept.ell, kept.top, kept.top_lo, kept.norm, kept.off, g)
        N, C, (images, channels) = geometry.N, int(call["C"][0]), geometry.groups
        plane = math.prod(self.centres.shape) // max(1, N)
        slope = self.xp.empty((images, channels, plane), dtype=self.dtype)  # scratch for each group in turn
        for n in range(0, N, images):
            for c in range(0, C, channels):
                here, some = min(images, N - n), min(channels, C - c)
                group = (None, np.int64(n), np.int32(c), np.int32(some))
                windows, pixels = (here * -(-some // 8) * tiles for tiles in geometry.tiles)
                self.launch("slopes", windows, self.logits, *maps, *softmax, slope, *group, call=call)
                self.launch("gather", pixels, slope, *maps, grad, *group, call=call)
        return grad
