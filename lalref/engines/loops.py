"""wip"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from lalref.engines import loops_kernels as K
from lalref.engines.loops_pool import LANES, Ring, Window
from lalref.engines.loops_threads import run


def flat(a: Any) -> Any:
    view = np.lib.stride_tricks.as_strided(a, shape=(1,), strides=(a.itemsize,), writeable=False)
    return view


def readonly(a):
    v = np.ascontiguousarray(a).reshape(-1).view(); v.flags.writeable = False
    return v


def window_of(radii, weight_of, dtype):
    ra, rb, rw = radii
    cells = sorted((max(abs(i), abs(j)), i, j) for i in range(-ra, ra + 1) for j in range(-rb, rb + 1))
    shells = cells[-1][0]
    start = [sum(c[0] < s for c in cells) for s in range(shells + 2)]
    weight = np.array([weight_of(d) for d in range(max(shells, rw) + 1)], dtype)
    return Window(
        np.array([c[1] for c in cells]), np.array([c[2] for c in cells]), np.array(start), weight, rw
    )


def up(n): return -(-n // LANES) * LANES


def setup(logits, labels, options):
    N, C, *S = logits.shape
    dtype = logits.dtype
    S3 = [1] * (3 - len(S)) + list(S)
    if len(S) == 2:
        S3 = [S[0], 1, S[1]]
    radii = options.radii(len(S)); strides = options.strides(len(S))
    r3 = [radii[0], 0, radii[1]]; s3 = [strides[0], 1, strides[1]]
    full = [min(r, n - 1) for r, n in zip(r3, S3)]
    def w(d): return 1.0 if options.sigma is None else math.exp(-0.5 * (d / options.sigma) ** 2)
    far = max(full)
    while dtype.type(w(far)) == 0: far -= 1
    unit = 2.0 ** max(0, -100 - math.frexp(w(far))[1]) if dtype == np.float32 else 1.0
    window = window_of([min(r, far) for r in full], lambda d: w(d) * unit, dtype)
    counted, apart = window, False
    if options.normalize == "count":
        counted, apart = window_of(full, lambda d: unit, dtype), True
    pad = up(counted.reach)
    rr = [int(max(abs(counted.row_a))), int(max(abs(counted.row_b)))]
    image = K.Image(C, *S3, *s3)
    def ring(width): return Ring(2 * rr[0] + 1, S3[1], pad + up(width) + up(counted.reach + LANES), pad)
    return image, window, counted, apart, ring, N, unit


def value_and_grad_raw(logits, labels, valid, options, gfun, most=12, band=None, group=None):
    image, window, counted, apart, ring, N, unit = setup(logits, labels, options)
    C, A, B, W = image[:4]; dtype=logits.dtype.type
    x = logits.reshape(N, C, A, B, W)
    steps = K.Steps(*(s // logits.itemsize for s in x.strides))
    ell = np.zeros(valid.shape, logits.dtype)
    grad = np.empty(logits.shape, logits.dtype)
    fx, fy, fv = flat(x), readonly(labels), readonly(valid)
    fl, fg = ell.reshape(-1), grad.reshape(-1)
    band = band or 32
    R = ring(W)
    tasks = [K.Task(n, a, min(a + band, A), 0, W, 0, C) for n in range(N) for a in range(0, A, band)]
    run(lambda t: K.forward(t, image, fx, steps, fy, fv, window, counted, apart, dtype(unit), R, options.label_smoothing, most, fl, fg, True), tasks)
    g = readonly(gfun(ell))
    e = math.frexp(float(np.max(np.abs(g))))[1]
    k = math.frexp(unit)[1]-1; a=max(0,min(100-k-e,126-k))
    group = group or max(1, -(-C // 8))
    tasks = [K.Task(n, 0, A, 0, W, c, min(c + group, C)) for n in range(N) for c in range(0, C, group)]
    run(lambda t: K.backward(t, image, fy, fv, g, dtype(2.0**a), dtype(2.0**-(a+k)), window, R, most, fg, fg), tasks)
    return ell, grad
