"""Over a mesh of JAX: parts put together by psum and pmax, and a gradient that JAX sums as it does any other.

It is for the inside of jax.shard_map and the array engine. What one device does alone is `lalref.adapters.jax`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

import lalref
from lalref.minkowski import Parts

jnp = jax.numpy
Array = Any
SUMMED = ("power_sum", "weight", "count")
jax.tree_util.register_dataclass(Parts, ("maximum", *SUMMED), ("options", "dtype"))


def combine_over(axis_name: str | tuple[str, ...], parts: Parts) -> Parts:
    """Put the parts of all devices along mesh axes together, as `lalref.combine` does; inside jax.shard_map."""
    bad = jnp.isnan(parts.maximum)  # XLA's pmax may lose a NaN on its way
    maximum = jax.lax.pmax(jnp.where(bad, -jnp.inf, parts.maximum), axis_name)
    maximum = jnp.where(jax.lax.psum(bad.astype(jnp.int32), axis_name) > 0, jnp.nan, maximum)
    zero = 0 * parts.weight
    nothing = dataclasses.replace(parts, maximum=maximum, power_sum=zero, weight=zero, count=0 * parts.count)
    here = lalref.combine(parts, nothing)  # this device's, its powers in units of the whole's maximum
    sums = {name: jax.lax.psum(getattr(here, name), axis_name) for name in SUMMED}
    return dataclasses.replace(parts, maximum=maximum, **sums)


def of_the_whole(loss: Any, axis_name: Any, x: Array, y: Array, w: Array | None) -> Array:
    """The whole's value; its gradient by a sum of zeros over the devices, which JAX turns round as it does any."""
    jax.lax.axis_size(axis_name)  # of a name that there is not: an error that says so, as a sum's may not
    mine = loss.parts(jax.lax.stop_gradient(x), y, pixel_weight=w)
    total = combine_over(axis_name, mine)
    nothing = jnp.where(jnp.isnan(mine.maximum), 0, 0 * mine.count).astype(
        total.dtype
    )  # one for each in vmap
    return total.value + jax.lax.psum(_share(loss, x, y, w, total, nothing), axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _share(loss: Any, x: Array, y: Array, w: Array | None, total: Parts, nothing: Array) -> Array:
    """0, whose gradient is that of the whole with respect to these logits."""
    return nothing


def _share_fwd(loss: Any, *given: Any) -> Any:
    return given[-1], given


def _share_bwd(loss: Any, given: Any, upstream: Array) -> Any:
    return _of_these_logits(loss, *given[:-1], upstream), None, None, None, None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_these_logits(loss: Any, x: Array, y: Array, w: Array | None, total: Parts, upstream: Array) -> Any:
    return loss.value_and_grad(x, y, pixel_weight=w, grad_output=upstream, total=total)[1]


def _no_more(*_: Any) -> Any:
    raise NotImplementedError("axis_name= gives first derivatives only: take second ones of the whole")


_share.defvjp(_share_fwd, _share_bwd)
_of_these_logits.defjvp(_no_more)
