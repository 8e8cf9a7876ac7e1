"""JAX ports with two described mistakes each, and with mistakes of the author's own."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from blind_ports.described import jax_right as steps


def memory_as_if_channels_first(logits, axis, labels):
    N, *S = labels.shape
    x = logits.reshape(N, -1, *S)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def bar_over_p(ell, p):
    return ell


bar_over_p.defvjp(lambda ell, p: (ell, None), lambda p, _, bar: (bar / p,))


def power_without_its_factor(ell, omega, p, reduction):
    """The derivative of t**p written as t**(p - 1)."""
    return steps.power_mean(ell if math.isinf(p) else bar_over_p(ell, p), omega, p, reduction)


channels_last_as_first_and_no_factor_p = steps.port(
    read=memory_as_if_channels_first, power_mean=power_without_its_factor
)


def whole_kernels(shape, stride, r):
    rows, columns = jnp.arange(shape[-2])[:, None], jnp.arange(shape[-1])
    fits = (rows >= r) & (rows < shape[-2] - r) & (columns >= r) & (columns < shape[-1] - r)
    return fits & steps.window_grid(shape, stride, r)


def maximum_inside(ell, omega, p, reduction):
    if math.isinf(p):
        return steps.power_mean(ell, omega, p, reduction)
    top = ell.max()
    outside = jax.lax.stop_gradient(top)
    S = (omega * jnp.where(top > 0, ell / jnp.where(top > 0, top, 1), 1) ** p).sum()
    B = omega.sum() if reduction == "mean" else 1.0
    return outside * jnp.where(top > 0, S / jnp.where(omega.sum() > 0, B, 1), 1) ** (1 / p)


no_border_windows_and_maximum_detached = steps.port(window_grid=whole_kernels, power_mean=maximum_inside)


def whole_power_mean(ell, omega, p, reduction):
    return steps.power_mean(ell, omega, p if math.isinf(p) else int(p), reduction)


whole_exponents_and_void_as_zero = steps.port(
    labels_for_pooling=lambda y: jnp.where(y == -1, 0, y), power_mean=whole_power_mean
)


# ---- the author's own

distance_in_strides = steps.port(distances=lambda r, stride: steps.distances(r, stride) / stride)


def sum_is_plain(ell, omega, p, reduction):
    if reduction == "sum":
        return (omega * ell).sum()
    return steps.power_mean(ell, omega, p, reduction)


sum_bypasses_the_power_mean = steps.port(power_mean=sum_is_plain)


def smoothed_by_the_window(onehot, alpha, masks, kernel, pad):
    """alpha goes to the classes as often as they occur around the pixel, itself included."""
    around = steps.convolve(onehot, kernel, pad)
    total = around.sum(1, keepdims=True)
    return (1 - alpha) * onehot + alpha * around / jnp.where(total > 0, total, 1)


smoothing_by_the_neighbourhood = steps.port(target=smoothed_by_the_window)


def averaged_pixel_weight(y, not_void, class_weight, pixel_weight, masks, kernel, index, pad):
    if pixel_weight is not None:
        sums = steps.convolve(jnp.where(masks, pixel_weight[:, None], 0), kernel, pad)
        D = steps.of_class(steps.convolve(masks.astype(sums.dtype), kernel, pad), index)
        merged = steps.of_class(sums, index) / jnp.where(D > 0, D, 1)
        pixel_weight = jnp.where(pixel_weight > 0, merged, 0)
    return steps.window_weights(y, not_void, class_weight, pixel_weight, masks, kernel, index, pad)


pixel_weight_merged_too = steps.port(window_weights=averaged_pixel_weight)
