"""The loss of dask arrays: lazily, chunk by chunk, with the pixels around each chunk that its windows read.

The chunks of the logits are the tiles of `lalref.scenes`, cut by slicing. dask's map_overlap would refuse or merge
chunks smaller than the halo; a slice may cross them, and a chunk be no multiple of the stride. Nothing is padded, and
the parts are put together as a tree.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import lalref
from lalref.scenes import Spans, check_maps, tiles

try:
    import dask
    import dask.array as da
except ImportError as error:
    raise ImportError("lalref.adapters.dask needs dask: pip install 'lalref[dask]'") from error

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
        In chunks of any size; the class axis is read whole. The smaller a chunk is beside the window, the more
        is read twice.
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
        As `lalref.lal_loss`, when it is computed; arrays that are no dask arrays, at once.

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
    for name, array in {"logits": logits, "labels": labels, "pixel_weight": pixel_weight}.items():
        if not isinstance(array, da.Array) and not (name == "pixel_weight" and array is None):
            raise TypeError(
                f"{name} must be a dask array; got {type(array).__name__}: dask.array.from_array() makes one"
            )
    check_maps(loss, logits, labels, pixel_weight)
    axis = loss.axis % logits.ndim
    edges = [list(itertools.accumulate(chunks, initial=0)) for chunks in logits.chunks]
    spans: list[Spans] = [list(itertools.pairwise(e)) for a, e in enumerate(edges) if a != axis]
    arrays = logits, labels, pixel_weight
    parts = [
        dask.delayed(cut.parts, pure=False)(loss, *cut.read(*arrays))
        for cut in tiles(loss, logits.shape, spans, 1)
    ]
    while len(parts) > 1:
        groups = [parts[i : i + BRANCHES] for i in range(0, len(parts), BRANCHES)]
        parts = [dask.delayed(lalref.combine)(*group) for group in groups]
    (total,) = parts
    dtype = np.dtype("float64" if logits.dtype == np.float64 else "float32")
    value = da.from_delayed(dask.delayed(lambda t: np.asarray(t.value))(total), (), dtype)
    blocks = np.empty([1 if a == axis else n for a, n in enumerate(logits.numblocks)], object)
    for at, cut in zip(np.ndindex(blocks.shape), tiles(loss, logits.shape, spans, 2), strict=True):
        grad = dask.delayed(cut.gradient)(loss, total, grad_output, *cut.read(*arrays))
        blocks[at] = da.from_delayed(grad, tuple(s.stop - s.start for s in cut.inner), dtype)
    return value, da.block(blocks.tolist()).rechunk(logits.chunks)
