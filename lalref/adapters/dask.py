"""The loss of dask arrays: lazily, chunk by chunk, with the pixels around each chunk that its windows read.

dask's map_overlap brings each chunk its halo. Windows of the halo are other chunks' and take no part (weight 0), and
the chunks' parts are combined by a tree reduction. No arithmetic of the loss may come in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import lalref
from lalref.arrays import dtype_name
from lalref.minkowski import Parts
from lalref.scenes import Spans, Tile, check_maps, tile_of

try:
    import dask.array as da
    from dask.array.overlap import ensure_minimum_chunksize
    from dask.blockwise import Blockwise
    from dask.graph_manipulation import clone
except ImportError as error:
    raise ImportError(
        "lalref.adapters.dask needs dask: in a clone of lalref, pip install -c constraints.txt -e '.[dask]'"
    ) from error

Array = Any
BRANCHES = 8  # parts that one task combines


def dask_value_and_grad(
    loss: lalref.LocallyAdaptiveLoss,
    logits: Array,
    labels: Array,
    *,
    pixel_weight: Array | None = None,
    grad_output: float = 1.0,
) -> tuple[Array, Array]:
    """Return the loss and its gradient as dask arrays, of which nothing is worked out yet.

    Parameters
    ----------
    loss : lalref.LocallyAdaptiveLoss
        With reduction "mean" or "sum".
    logits : dask.array (N, C, *S)
        In chunks of any size; the class axis is read whole, and chunks smaller than the halo are merged with
        their neighbours. Nothing is worked out chunk by chunk until it is computed; then each chunk costs dask some
        10 ms a sweep, however small, and the smaller it is beside the window, the more is read twice: rechunk to
        1024 or so along each spatial axis.
        A gradient takes two sweeps in dask's own order. What is read or worked out chunk by chunk is so for each
        sweep, and a part of the scene is kept between tasks; of other arrays (slices, stacks) it may be the whole.
        Pages of a memmap opened chunk by chunk are no memory of dask's (from_array copies it all); `lalref.scenes`
        keeps one tile.
    labels, pixel_weight : dask.array (N, *S)
        In any chunks.
    grad_output : float, default 1.0
        What the gradient is multiplied by, before it is rounded.

    Returns
    -------
    value, grad
        A 0-d array, and one in the chunks of the logits; float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `lalref.lal_loss`, when it is computed; arrays that are no dask arrays, or whose shape dask does not
        know yet, at once.

    Examples
    --------
    >>> import dask.array as da
    >>> from lalref import LocallyAdaptiveLoss
    >>> from lalref.adapters.dask import dask_value_and_grad
    >>> x = da.zeros((1, 2, 60, 80), chunks=(1, 2, 20, 30), dtype="float32")
    >>> y = da.zeros((1, 60, 80), chunks=(1, 30, 80), dtype="uint8")
    >>> value, grad = dask_value_and_grad(LocallyAdaptiveLoss(), x, y)
    >>> round(float(value.compute()), 6), grad.chunks == x.chunks
    (0.693147, True)
    """
    maps = {"labels": labels} if pixel_weight is None else {"labels": labels, "pixel_weight": pixel_weight}
    for name, array in {"logits": logits, **maps}.items():
        if not isinstance(array, da.Array):
            told = f"{name} must be a dask array; got {type(array).__name__}"
            raise TypeError(f"{told}: dask.array.from_array() makes one")
        if np.isnan(array.shape).any():
            raise ValueError(f"{name} has chunks of unknown size: call its compute_chunk_sizes() first")
    check_maps(loss, logits, labels, pixel_weight)
    dtype = np.dtype("float64" if dtype_name(logits.dtype) == "float64" else "float32")
    axis, axes = loss.axis % logits.ndim, range(logits.ndim)
    others = tuple(a for a in axes if a != axis)

    def as_block(total: Parts) -> Array:
        numbers = [total.maximum, total.power_sum, total.weight, total.count]
        return np.reshape(np.asarray(numbers, np.float64), [4 if a == axis else 1 for a in axes])

    def combined(blocks: Array) -> Parts:
        rows = np.moveaxis(blocks, axis, -1).reshape(-1, 4)  # (parts, 4)
        return lalref.combine(*(Parts(m, S, B, np.int64(M), loss, dtype.name) for m, S, B, M in rows))

    def parts(cut: Tile, *arrays: Array) -> Array:
        return as_block(cut.parts(loss, *arrays))

    def gradient(cut: Tile, *arrays: Array) -> Array:
        return cut.gradient(loss, combined(arrays[-1]), grad_output, *arrays[:-1])

    # tasks of its own, for dask would keep what it reads for both sweeps from the first until the second
    first = [_apart(array) for array in (logits, *maps.values())]
    blocks = _mapped(parts, loss, 1, first[0], first[1:], 4, np.dtype("float64"))
    total = da.reduction(
        blocks,
        lambda a, axis, keepdims: a,
        lambda a, axis, keepdims: as_block(combined(a)),
        axis=others,
        keepdims=True,
        split_every=BRANCHES,
        dtype=np.float64,
    )
    value = total.map_blocks(
        lambda a: np.asarray(combined(a).value), drop_axis=list(axes), dtype=dtype, meta=np.empty((), dtype)
    )
    grad = _mapped(gradient, loss, 2, logits, list(maps.values()), None, dtype, total)
    return value, grad.rechunk(logits.chunks)


def _apart(array: Array) -> Array:
    """The array by tasks of its own, or itself where a layer's tasks name one another: clone loses those names."""
    layers = array.__dask_graph__().layers.values()
    if all(isinstance(each, Blockwise) or not any(map(_depends, each.values())) for each in layers):
        return clone(array, seed=dask_value_and_grad.__name__)
    return array


def _depends(task: Any) -> bool:
    return bool(getattr(task, "dependencies", ()))


def _mapped(
    function: Callable[..., Array],
    loss: lalref.LocallyAdaptiveLoss,
    halo: int,
    logits: Array,
    maps: Sequence[Array],
    classes: int | None,
    dtype: Any,
    *more: Array,
) -> Array:
    """function(tile, *arrays) of every chunk, in an array of its chunks, with `classes` numbers where classes were.

    `more` are arrays of one chunk, which every call is given whole. As keyword arguments of map_overlap they would have
    their tasks worked out here, one by one, and not when they are asked for.
    """
    axis = loss.axis % logits.ndim
    sizes = zip((0, *loss.radii(logits.ndim - 2)), (1, *loss.strides(logits.ndim - 2)), strict=True)
    depth = [halo * r + s - 1 for r, s in sizes]  # to where the stride grid of the whole has a window too
    depth.insert(axis, 0)
    depth = [min(d, n) for d, n in zip(depth, logits.shape, strict=True)]
    merged = [ensure_minimum_chunksize(d, c) for d, c in zip(depth, logits.chunks, strict=True)]
    merged[axis] = (logits.shape[axis],)
    edges = [list(itertools.accumulate(c, initial=0)) for a, c in enumerate(merged) if a != axis]
    spans: list[Spans] = [list(itertools.pairwise(e)) for e in edges]
    shape, count = logits.shape, len(maps)

    def block(x: Array, *others: Array, block_id: tuple[int, ...]) -> Array:
        ids = block_id[:axis] + block_id[axis + 1 :]
        cut = tile_of(loss, shape, [span[i] for span, i in zip(spans, ids, strict=True)], halo)
        start = [max(0, inner.start - d) for inner, d in zip(cut.inner, depth, strict=True)]
        outer = tuple(slice(o.start - i, o.stop - i) for o, i in zip(cut.outer, start, strict=True))
        y, *w = (np.squeeze(a, axis)[outer[:axis] + outer[axis + 1 :]] for a in others[:count])
        return function(cut, x[outer], y, w[0] if w else None, *others[count:])

    flat = [(1,) if a == axis else c for a, c in enumerate(merged)]
    given = [logits.rechunk(merged), *(da.expand_dims(a, axis).rechunk(flat) for a in maps)]
    chunks = (
        merged
        if classes is None
        else [(classes,) if a == axis else (1,) * len(c) for a, c in enumerate(merged)]
    )
    return da.map_overlap(
        block, *given, *more, depth=[dict(enumerate(depth))] * len(given) + [0] * len(more), boundary="none",
        trim=False, align_arrays=False, chunks=tuple(chunks), dtype=dtype, meta=np.empty((0,) * logits.ndim, dtype),
    )  # fmt: skip
