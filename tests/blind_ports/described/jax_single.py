"""JAX ports with one mistake each, after the descriptions. Forward mistakes go backwards by jax.grad."""

import math

import jax
import jax.numpy as jnp

from blind_ports.described import jax_right as steps


@jax.custom_vjp
def label_entries(x, onehot):
    return x


label_entries.defvjp(
    lambda x, onehot: (x, onehot), lambda onehot, bar: (bar * onehot, jnp.zeros_like(onehot))
)
only_the_labels_entry = steps.port(reach=label_entries)

distance_not_squared = steps.port(weight_of=lambda d, sigma: jnp.exp(-0.5 * d / sigma))

reads_the_grid_only = steps.port(sources=lambda masks, grid: masks & grid)

half_precision_inside = steps.port(hold=lambda ell: ell.astype(jnp.float16).astype(ell.dtype))


def powers_without_a_root(ell, omega, p, reduction):
    if math.isinf(p):
        return steps.power_mean(ell, omega, p, reduction)
    B = omega.sum() if reduction == "mean" else 1.0
    return (omega * ell**p).sum() / jnp.where(omega.sum() > 0, B, 1)


no_root = steps.port(power_mean=powers_without_a_root)


def mirrored(u, r):
    return jnp.pad(u, [(0, 0)] * (u.ndim - 2) + [(r, r)] * 2, mode="symmetric")


mirrors_the_border = steps.port(padded=mirrored)


def average_with_a_plain_backward(x, masks, index, kernel, D, pad):
    """Forward divides by D; the backward is the pooling alone."""

    @jax.custom_vjp
    def divide(pooled):
        return pooled / D[:, None]

    divide.defvjp(lambda pooled: (pooled / D[:, None], None), lambda _, bar: (bar,))
    return divide(steps.average(x, masks, index, kernel, jnp.ones_like(D), pad))


divisor_forgotten = steps.port(average=average_with_a_plain_backward)

ignores_p = steps.port(
    power_mean=lambda ell, omega, p, reduction: steps.power_mean(ell, omega, 1.0, reduction)
)
