"""JAX ports with mistakes that the catalogue has not."""

import math

import jax.numpy as jnp

from blind_ports.described import jax_right as steps


def lines_twice_as_far(r, stride):
    """Rows of an interlaced film: the next one is two lines away."""
    away = jnp.abs(jnp.arange(-r, r + 1))
    return jnp.maximum(2 * away[:, None], away)


rows_of_a_film = steps.port(distances=lines_twice_as_far)


def lehmer_mean(ell, omega, p, reduction):
    """The losses weighted by their own powers: sum of ell**p over sum of ell**(p - 1)."""
    if math.isinf(p) or reduction == "sum":
        return steps.power_mean(ell, omega, p, reduction)
    top = ell.max()
    r = jnp.where(top > 0, ell / jnp.where(top > 0, top, 1), 1)
    below = (omega * r ** (p - 1)).sum()
    return top * (omega * r**p).sum() / jnp.where(below > 0, below, 1)


weighted_by_their_own_powers = steps.port(power_mean=lehmer_mean)
