"""Scenes too large for memory: the loss tile by tile, and its gradient, equal to the whole image's to rounding.

A tile is worked out with the pixels around it that its windows read. Windows of those pixels are other tiles' and
take no part (weight 0), so each window counts once and every group is whole, and `lalref.combine` puts the tiles'
parts together. In come arrays that can be cut and read piece by piece: NumPy's memmap, HDF5 and Zarr data sets,
`lalref.adapters.dask` for dask. No arithmetic of the loss may come in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lalref.arrays import FLOATS, Array, dtype_name
from lalref.hints import shape_hint
from lalref.loss import LocallyAdaptiveLoss
from lalref.minkowski import Parts, combine
from lalref.targets import check_target

__all__ = ["scene_parts", "scene_value_and_grad"]

POSITION = re.compile(r"\bat \(([\d, ]+)\)")  # of a bad label or weight, as the door tells it
Slices = tuple[slice, ...]
Spans = Sequence[tuple[int, int]]


def scene_parts(
    loss: LocallyAdaptiveLoss,
    logits: Array,
    labels: Array,
    *,
    pixel_weight: Array | None = None,
    tile: int = 512,
    progress: bool = False,
) -> Parts:
    """Return the parts of a scene, whose ``value`` is its loss; one sweep in the memory of a tile.

    Parameters
    ----------
    loss : LocallyAdaptiveLoss
        With reduction "mean" or "sum".
    logits, labels, pixel_weight : array-like
        As `lal_loss` takes them, but only ever read as ``array[slices]``. How to give a source of one image without
        a batch axis, (C, H, W), docs/howto/shard.md shows.
    tile : int, default 512
        Length of a tile along each spatial axis. Over two axes about ``45 * tile**2`` bytes are in use for the
        maps of weights and losses, ``4 * C * tile**2`` for a float32 copy of 16-bit logits, as much again for a
        gradient (float64: twice), and what the source copies when it is read (a memmap nothing, HDF5 the tile).
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Parts
        Of the whole scene.

    Raises
    ------
    TypeError, ValueError
        As `lal_loss`, with a note of the tile (counts are the tile's, positions the scene's); or `loss` is no
        `LocallyAdaptiveLoss`, or its `empty` is "raise", which no tile can decide.

    Examples
    --------
    >>> import numpy as np
    >>> from lalref import LocallyAdaptiveLoss
    >>> from lalref.scenes import scene_parts
    >>> logits = np.arange(2 * 30 * 40).reshape(1, 2, 30, 40) % 7 / np.float32(2)
    >>> labels = np.arange(30 * 40).reshape(1, 30, 40) // 3 % 2
    >>> loss = LocallyAdaptiveLoss()
    >>> bool(np.isclose(scene_parts(loss, logits, labels, tile=16).value, loss(logits, labels), rtol=1e-6))
    True
    """
    check_maps(loss, logits, labels, pixel_weight)
    found = None
    for cut in _shown(_scene_tiles(loss, logits, tile, 1), progress, "loss"):
        part = cut.parts(loss, *cut.read(logits, labels, pixel_weight))
        found = part if found is None else combine(found, part)
    return loss.parts(np.asarray(logits), np.asarray(labels)) if found is None else found


def scene_value_and_grad(
    loss: LocallyAdaptiveLoss,
    logits: Array,
    labels: Array,
    grad: Array,
    *,
    pixel_weight: Array | None = None,
    grad_output: float = 1.0,
    tile: int = 512,
    progress: bool = False,
) -> Array:
    """Write the gradient of a scene's loss into `grad`, and return the loss; two sweeps in the memory of a tile.

    Parameters
    ----------
    loss, logits, labels, pixel_weight, tile, progress
        As for `scene_parts`.
    grad : array-like shaped as the logits
        Written to as ``grad[slices] = ...``, each entry once. It must be other memory, another file or data set than
        what is read, of which tiles are read after others are written. That is checked as far as it can be told (not
        through a wrapper of yours). Of a mean over millions of windows the entries
        are too small for float16: make it float32, or scale by `grad_output`.
    grad_output : float, default 1.0
        What the gradient is multiplied by, before it is rounded to the dtype of `grad`.

    Returns
    -------
    0-d array
        The loss of the whole scene.

    Raises
    ------
    TypeError, ValueError
        As `scene_parts`, and where `grad` has another shape than the logits, is of no floating-point dtype, is
        read-only, or overlaps what is read; before any work.

    Examples
    --------
    >>> import numpy as np
    >>> from lalref import LocallyAdaptiveLoss
    >>> from lalref.scenes import scene_value_and_grad
    >>> logits = np.arange(2 * 30 * 40).reshape(1, 2, 30, 40) % 7 / np.float32(2)
    >>> labels = np.arange(30 * 40).reshape(1, 30, 40) // 3 % 2
    >>> loss, grad = LocallyAdaptiveLoss(), np.empty_like(logits)
    >>> value = scene_value_and_grad(loss, logits, labels, grad, tile=16)
    >>> bool(np.allclose(grad, loss.value_and_grad(logits, labels)[1], atol=1e-9))
    True
    """
    check_target(grad, logits, labels, pixel_weight)
    total = scene_parts(loss, logits, labels, pixel_weight=pixel_weight, tile=tile, progress=progress)
    for cut in _shown(_scene_tiles(loss, logits, tile, 2), progress, "gradient"):
        grad[cut.inner] = cut.gradient(loss, total, grad_output, *cut.read(logits, labels, pixel_weight))
    return total.value


# --- The geometry, which dask's tiles share ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile and what its windows read: slices of the logits (with the class axis) and of maps (without).

    With halo 1 around the tile its windows are whole; with halo 2 so are all windows that read the tile, which
    is what its gradient needs.
    """

    inner: Slices  # the tile in the logits
    outer: Slices  # what is read, in the logits
    outer_map: Slices  # the same in labels and weights
    windows: Slices  # the windows that take part, in `outer_map`
    inside: Slices  # the tile in `outer`

    def read(self, logits: Array, labels: Array, pixel_weight: Array | None) -> tuple[Any, Any, Any]:
        """The tile's arrays, still of the caller's library."""
        weight = None if pixel_weight is None else pixel_weight[self.outer_map]
        return logits[self.outer], labels[self.outer_map], weight

    def parts(self, loss: LocallyAdaptiveLoss, logits: Array, labels: Array, weight: Array | None) -> Parts:
        """What the windows of this tile contribute."""
        with self._told():
            x, y, w = self._arrays(logits, labels, weight)
            return loss.parts(x, y, pixel_weight=w)

    def gradient(
        self,
        loss: LocallyAdaptiveLoss,
        total: Parts,
        grad_output: float,
        logits: Array,
        labels: Array,
        weight: Array | None,
    ) -> Array:
        """The gradient of the whole's value with respect to the logits of this tile, in the working dtype."""
        with self._told():
            x, y, w = self._arrays(logits, labels, weight)
            grad = loss.value_and_grad(x, y, pixel_weight=w, grad_output=grad_output, total=total)[1]
            return grad[self.inside]

    def _arrays(self, logits: Array, labels: Array, weight: Array | None) -> tuple[Array, Array, Array]:
        for name, array in {"logits": logits, "labels": labels, "pixel_weight": weight}.items():
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError(
                    f"{name} is read as a masked array, whose mask would be lost: mark ignored pixels in labels instead"
                )
        x, y = np.asarray(logits), np.asarray(labels)
        if dtype_name(x.dtype) in ("float16", "bfloat16"):
            x = x.astype(np.float32)  # so that the gradient is rounded once
        w = np.zeros(y.shape)
        w[self.windows] = 1.0 if weight is None else np.asarray(weight)[self.windows]
        return x, y, w

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors tell the tile, and positions as they are in the whole."""
        try:
            yield
        except Exception as error:
            if isinstance(error, ValueError) and error.args:
                error.args = (POSITION.sub(self._in_whole, str(error.args[0])), *error.args[1:])
            cut = ", ".join(f"{s.start}:{s.stop}" for s in self.outer_map)
            error.add_note(f"in the tile that reads labels[{cut}]")
            raise

    def _in_whole(self, found: re.Match[str]) -> str:
        here = (int(number) for number in found[1].split(",") if number)
        return f"at {tuple(i + s.start for i, s in zip(here, self.outer_map, strict=True))}"


def check_maps(loss: LocallyAdaptiveLoss, logits: Array, labels: Array, pixel_weight: Array | None) -> None:
    """Refuse what is no loss of parts, and maps that don't belong to the logits, before anything is read.

    Each tile alone would take its part of such maps for all there is.
    """
    if not isinstance(loss, LocallyAdaptiveLoss):
        has_options = isinstance(getattr(loss, "options", None), LocallyAdaptiveLoss)
        raise TypeError(
            f"loss must be a lalref.LocallyAdaptiveLoss, made with its options; got {_kind(loss)}"
            + ": pass its .options" * has_options
        )
    if loss.reduction == "none":
        raise ValueError(
            'reduction="none" has no parts to combine: the map of the whole is the maps put together'
        )
    if loss.empty == "raise":
        raise ValueError('empty="raise" would be decided by each tile alone: use empty="zero" or "nan"')
    if dtype_name(logits.dtype) not in FLOATS:
        raise TypeError(f"logits must be of dtype {', '.join(FLOATS)}; got {dtype_name(logits.dtype)}")
    axis = loss.axis % len(logits.shape)
    want = tuple(n for a, n in enumerate(logits.shape) if a != axis)
    for name, array in {"labels": labels, "pixel_weight": pixel_weight}.items():
        if array is not None and tuple(array.shape) != want:
            hint = shape_hint(tuple(logits.shape), tuple(array.shape), loss.axis) if array is labels else ""
            raise ValueError(
                f"{name} must have the shape of logits without class axis {loss.axis}, {want} for logits "
                f"{tuple(logits.shape)}; got {tuple(array.shape)}{hint}"
            )
    if pixel_weight is not None and dtype_name(pixel_weight.dtype) not in FLOATS:
        raise TypeError(f"pixel_weight must be floating-point; got {pixel_weight.dtype}")


def _kind(thing: object) -> str:
    if name := getattr(thing, "__qualname__", ""):
        return f"the {'class' if isinstance(thing, type) else 'function'} {name}"
    return f"a {type(thing).__module__}.{type(thing).__qualname__}"


def tiles(
    loss: LocallyAdaptiveLoss, shape: Sequence[int], spans: Sequence[Spans], halo: int
) -> Iterator[Tile]:
    """Cut logits of `shape` into tiles: `spans` are (from, to) along the batch and each spatial axis."""
    return (tile_of(loss, shape, span, halo) for span in itertools.product(*spans))


def tile_of(loss: LocallyAdaptiveLoss, shape: Sequence[int], span: Spans, halo: int) -> Tile:
    """The tile of logits of `shape` that goes from and to, along the batch and each spatial axis, where `span` says."""
    axis = loss.axis % len(shape)
    N, *S = (n for a, n in enumerate(shape) if a != axis)
    radii, strides = (0, *loss.radii(len(S))), (1, *loss.strides(len(S)))

    def with_classes(slices: Sequence[slice]) -> Slices:
        return (*slices[:axis], slice(0, shape[axis]), *slices[axis:])

    inner, outer, windows, inside = [], [], [], []
    for (lo, hi), length, r, s in zip(span, (N, *S), radii, strides, strict=True):
        first = max(0, lo - halo * r) // s * s  # where the stride grid of the whole has a window too
        last = min(length, hi + halo * r)
        more = (halo - 1) * r
        inner.append(slice(lo, hi))
        outer.append(slice(first, last))
        windows.append(slice(max(0, lo - more) - first, min(length, hi + more) - first))
        inside.append(slice(lo - first, hi - first))
    return Tile(with_classes(inner), with_classes(outer), tuple(outer), tuple(windows), with_classes(inside))


def _scene_tiles(loss: LocallyAdaptiveLoss, logits: Array, tile: int, halo: int) -> list[Tile]:
    try:
        length = 0 if isinstance(tile, bool) else operator.index(tile)
    except TypeError:
        length = 0
    if length < 1:
        raise ValueError(f"tile={tile!r} is not allowed: it must be an int >= 1")
    shape = tuple(logits.shape)
    N, *S = (n for a, n in enumerate(shape) if a != loss.axis % len(shape))
    lengths = (1, *(length for _ in S))
    spans = [
        [(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip((N, *S), lengths, strict=True)
    ]
    return list(tiles(loss, shape, spans, halo))


def _shown(cuts: list[Tile], progress: bool, what: str) -> Iterator[Tile]:
    if not progress:
        return iter(cuts)
    from rich.progress import track

    return iter(track(cuts, description=f"{what} of {len(cuts)} tiles"))
