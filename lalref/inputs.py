"""The door for arrays: every promise about inputs is checked here, once, and the arrays made canonical.

After `prepare` the engines and stage 3 need to know nothing of axes, label dtypes, ignored labels or weights:
they see logits (N, C, *S), labels in -1..C, the windows that exist and their weights. No arithmetic of the
loss may come in.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lalref.arrays import (
    FLOATS,
    INTEGERS,
    Array,
    Namespace,
    Refusals,
    at_home,
    device_of,
    dtype_name,
    library,
    namespace,
    native,
    to_numpy,
    wide_dtype,
    working_dtype,
)
from lalref.hints import shape_hint
from lalref.labels import canonical_labels
from lalref.options import DefaultIgnoreIndex, Options

MAX_SPATIAL_AXES = 5


@dataclasses.dataclass(frozen=True)
class Problem:
    """A checked call in canonical form.

    Attributes
    ----------
    logits : (N, C, *S), native byte order, the caller's dtype
    labels : (N, *S) int32, or int8 where it will do: 0..C-1 a class, -1 ignored, C out of range (its windows are NaN)
    valid : (N, *grid) bool, the windows that exist
    weights : (N, *grid) float64, their weights, NaN one that isn't allowed (check=False), 0 elsewhere; None
        where every window weighs 1
    """

    xp: Namespace
    logits: Array
    labels: Array
    valid: Array
    weights: Array | None
    options: Options

    @property
    def omega(self) -> Array:
        """The windows' weights of equation (3), float64 (N, *grid), 0 where there is none."""
        return self.xp.astype(self.valid, wide_dtype(self.xp)) if self.weights is None else self.weights

    @property
    def working_logits(self) -> Array:
        """The logits in the dtype that the loss is worked out in."""
        return self.xp.astype(self.logits, working_dtype(self.xp, self.logits.dtype), copy=False)

    def like_logits(self, array: Array, what: str) -> Array:
        """Check a tangent, shaped as the caller's logits; return it as (N, C, *S) in the working dtype."""
        _same_library("logits", self.logits, what, array)
        xp, options = self.xp, self.options
        want = _to_axis(self.logits.shape, options.axis)
        if tuple(array.shape) != want:
            raise ValueError(f"{what} must have the shape of logits, {want}; got {tuple(array.shape)}")
        if dtype_name(array.dtype) not in FLOATS:
            raise TypeError(f"{what} must be of dtype {', '.join(FLOATS)}; got {dtype_name(array.dtype)}")
        canonical = _move(xp, native(array), options.axis, 1)
        return xp.astype(canonical, working_dtype(xp, self.logits.dtype), copy=False)

    def caller_gradient(self, grad: Array) -> Array:
        """Return a gradient (N, C, *S) in the caller's dtype, with the class axis where the caller has it."""
        return _move(self.xp, self.xp.astype(grad, self.logits.dtype, copy=False), 1, self.options.axis)

    def upstream(self, grad_output: float | Array) -> Array:
        """Check `grad_output`, a scalar or for reduction="none" a map, and return it in float64."""
        xp, wide = self.xp, wide_dtype(self.xp)
        if isinstance(grad_output, int | float | np.generic):
            return xp.asarray(float(grad_output), dtype=wide, device=device_of(self.logits))
        _same_library("logits", self.logits, "grad_output", grad_output)
        allowed = [()] + [tuple(self.valid.shape)] * (self.options.reduction == "none")
        if tuple(grad_output.shape) not in allowed:
            raise ValueError(
                f"grad_output must be a scalar{' or have the shape of the map' if len(allowed) > 1 else ''} "
                f"for reduction={self.options.reduction!r}: one of {allowed}; got {tuple(grad_output.shape)}"
            )
        if dtype_name(grad_output.dtype) not in FLOATS:
            raise TypeError(f"grad_output must be floating-point; got {dtype_name(grad_output.dtype)}")
        return xp.astype(native(grad_output), wide)


def prepare(logits: Array, labels: Array, pixel_weight: Array | None, options: Options) -> Problem:
    """Check a call's arrays against the promises (docs/specification.md) and make them canonical.

    Raises
    ------
    TypeError
        Not arrays of one library, or of a dtype that the loss doesn't take.
    ValueError
        Shapes that don't fit, labels out of range, bad weights, or no valid window under empty="raise".
    """
    xp = _library("logits", logits)
    with at_home(xp, logits):
        return _prepare(xp, logits, labels, pixel_weight, options)


def _prepare(
    xp: Namespace, logits: Array, labels: Array, pixel_weight: Array | None, options: Options
) -> Problem:
    _same_library("logits", logits, "labels", labels)
    if dtype_name(logits.dtype) not in FLOATS:
        raise TypeError(
            f"logits must be of dtype {', '.join(FLOATS)}; got {dtype_name(logits.dtype)}. "
            "For other number types there is lalref.definition.loss"
        )
    if dtype_name(labels.dtype) not in INTEGERS:
        raise TypeError(
            f"labels must be integers (class indices, uint8 masks too); got {dtype_name(labels.dtype)}"
        )
    x = _move(xp, native(logits), _axis(logits, options), 1)
    N, C, *S = x.shape
    want = (N, *S)
    if tuple(labels.shape) != want:
        raise ValueError(
            f"labels must have the shape of logits without class axis {options.axis}, {want} for logits "
            f"{tuple(logits.shape)}; got {tuple(labels.shape)}"
            + shape_hint(tuple(logits.shape), tuple(labels.shape), options.axis)
        )
    if C == 0:
        raise ValueError(
            f"logits need at least one class on axis {options.axis}; got shape {tuple(logits.shape)}"
        )
    if isinstance(options.ignore_index, DefaultIgnoreIndex) and C > 255:
        raise ValueError(
            f"logits have {C} classes, so the default ignore_index=255 would be a class: "
            "say ignore_index=None, or which label is ignored"
        )
    if options.class_weight is not None and len(options.class_weight) != C:
        raise ValueError(
            f"class_weight must have one weight for each of the {C} classes; got {len(options.class_weight)}"
        )
    options.radii(len(S))
    refusals = Refusals()
    y = canonical_labels(xp, labels, C, options, refusals)
    grid = (slice(None), *(slice(None, None, s) for s in options.strides(len(S))))
    y_grid = y[grid]
    valid, weights = y_grid >= 0, None
    if options.class_weight is not None or pixel_weight is not None:
        omega = _weights(xp, y, pixel_weight, want, options, refusals)[grid]
        valid = valid & (omega != 0)
        weights = xp.where(valid, omega, 0.0)
    if options.empty == "raise":
        refusals.where(
            ~xp.any(valid),
            lambda: (
                f"no valid window: all {math.prod(y_grid.shape)} labels on the stride grid are ignored or of "
                'weight 0, and empty="raise"'
            ),
            while_tracing='empty="raise" can\'t be decided while tracing: use empty="zero" or "nan"',
        )
    refusals.speak()
    return Problem(xp, x, y, valid, weights, options)


def _library(what: str, array: Array) -> Namespace:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{what} is a masked array, whose mask would be lost: mark ignored pixels in labels instead"
        )
    try:
        return namespace(array)
    except TypeError:
        raise TypeError(
            f"{what} must be an array (NumPy, CuPy, torch, JAX or another array-API library); got "
            f"{type(array).__module__}.{type(array).__qualname__}: numpy.asarray() makes one"
        ) from None


def _same_library(what: str, array: Array, other: str, second: Array) -> None:
    xp, xp2 = _library(what, array), _library(other, second)
    if xp is not xp2:
        raise TypeError(
            f"{what} and {other} must be arrays of one library; got {xp.__name__} and {xp2.__name__}: "
            "convert one of them"
        )
    # JAX places arrays itself, and says so itself where it can't
    if library(xp) != "jax" and device_of(array) != device_of(second):
        raise ValueError(
            f"{what} and {other} must be on one device; got {device_of(array)} and "
            f"{device_of(second)}: move one of them"
        )


def _axis(logits: Array, options: Options) -> int:
    shape = tuple(logits.shape)
    if not 2 <= len(shape) <= 2 + MAX_SPATIAL_AXES:
        raise ValueError(f"logits must have 2 to {2 + MAX_SPATIAL_AXES} axes (N, C, *S); got shape {shape}")
    if not -len(shape) < options.axis < len(shape) or options.axis == 0:
        raise ValueError(
            f"axis={options.axis} is no class axis of logits of shape {shape}: allowed are "
            f"1 to {len(shape) - 1} and -1 to {1 - len(shape)} (axis 0 is the batch)"
        )
    return options.axis


def _move(xp: Namespace, array: Array, source: int, destination: int) -> Array:
    """`xp.moveaxis`, but not where nothing moves: torch's vmap has no rule for it."""
    if source % array.ndim == destination % array.ndim:
        return array
    return xp.moveaxis(array, source, destination)


def _to_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    N, C, *S = shape
    moved = [N, *S]
    moved.insert(axis % len(shape), C)
    return tuple(moved)


def _weights(
    xp: Namespace,
    y: Array,
    pixel_weight: Array | None,
    want: tuple[int, ...],
    options: Options,
    refusals: Refusals,
) -> Array:
    """omega of equation (3) on the full image, float64, 0 at ignored pixels, whose weights are never read."""
    wide = wide_dtype(xp)
    device = device_of(y)
    omega = xp.ones_like(y, dtype=wide)
    if options.class_weight is not None:
        table = xp.asarray(
            (*options.class_weight, 1.0), dtype=wide, device=device
        )  # a label out of range reads the 1
        index = xp.where(y < 0, 0, y)
        omega = xp.reshape(xp.take(table, xp.reshape(index, (-1,)), axis=0), y.shape)
    if pixel_weight is not None:
        _same_library("labels", y, "pixel_weight", pixel_weight)
        if tuple(pixel_weight.shape) != want:
            raise ValueError(
                f"pixel_weight must have the shape of labels, {want}; got {tuple(pixel_weight.shape)}"
            )
        if dtype_name(pixel_weight.dtype) not in FLOATS:
            raise TypeError(f"pixel_weight must be floating-point; got {dtype_name(pixel_weight.dtype)}")
        weight = xp.where(y >= 0, xp.astype(native(pixel_weight), wide), 0.0)
        bad = ~((weight >= 0) & (weight < math.inf))
        if options.check:
            refusals.where(
                xp.any(bad),
                lambda: _bad_weights(weight, bad),
                while_tracing="pixel_weight can't be checked while tracing: pass check=False",
            )
            omega = omega * weight
        else:  # never a plausible number
            omega = omega * xp.where(bad, math.nan, weight)
    return xp.where(y >= 0, omega, 0.0)


def _bad_weights(weight: Array, bad: Array) -> str:
    weight, bad = (to_numpy(a) for a in (weight, bad))
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    return (
        f"pixel_weight must be finite and >= 0 where labels are not ignored; "
        f"{int(bad.sum())} are not, first {float(weight[first])} at {first}"
    )
