"""A program that test_adapter_jax.py runs with 2 and 4 devices: the loss over a mesh is that of the whole batch.

XLA makes devices of one CPU only before JAX is imported, so it is a program of its own:
XLA_FLAGS=--xla_force_host_platform_device_count=2 python jax_mesh.py
"""

import math
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest

from lalref import LocallyAdaptiveLoss, lal_value_and_grad
from lalref.adapters.jax import locally_adaptive_loss
from lalref.oracle.inputs import VOID, eighths, scattered, weights

P = jax.sharding.PartitionSpec
X, Y, W = eighths((4, 3, 5, 4), 1), scattered((4, 5, 4), 3, 3, VOID), weights((4, 5, 4), 5)
X[2:] *= 3
Y[0] = VOID  # with 4 devices the first has no valid pixel
TRACED = {"engine": "array", "check": False}


def over(mesh, options, axis_name=None, **more):
    """f(logits, labels, pixel_weight) of arrays cut along all axes of the mesh, and what cuts them."""
    axes = axis_name or mesh.axis_names[0]

    def device(x, y, w=None):
        return locally_adaptive_loss(x, y, pixel_weight=w, axis_name=axes, **options, **TRACED)

    def f(*arrays):
        cut = (P(axes),) * len(arrays)
        return jax.shard_map(device, mesh=mesh, in_specs=cut, out_specs=P(), **more)(*arrays)

    return f, partial(jax.device_put, device=jax.NamedSharding(mesh, P(axes)))


def held_to_the_whole(f, arrays, right, rtol, atol):
    value, grad = jax.jit(jax.value_and_grad(lambda *a: 2.0 * f(*a)))(*arrays)
    assert grad.dtype == arrays[0].dtype
    np.testing.assert_allclose(value, 2 * right[0], rtol=rtol)
    np.testing.assert_allclose(grad, right[1], rtol=rtol, atol=atol)


def the_whole_batchs_value_and_gradient(world):
    mesh = jax.make_mesh((world,), ("devices",))
    for given, dtype, options in (
        (2, "float64", {"p": 5.0}),
        (2, "float64", {"p": math.inf} if world == 4 else {"p": 1.0, "reduction": "sum"}),
        (3, "float32", {"p": 2.5, "reduction": "sum" if world == 4 else "mean", "class_weight": (1.0, 2.0, 0.5)}),
    ):  # fmt: skip
        options["kernel_size"] = (3, 1)
        arrays = (X.astype(dtype), Y, W)[:given]
        right = lal_value_and_grad(
            *arrays[:2], pixel_weight=W if given == 3 else None, grad_output=2.0, **options
        )
        f, cut = over(mesh, options)
        rtol, atol = (1e-12, 1e-15) if dtype == "float64" else (1e-5, 1e-6)
        held_to_the_whole(f, [cut(a) for a in arrays], right, rtol, atol)


def the_gradient_is_right_however_shard_map_is_told_to_check(world):
    """Of the logits and of a weight that every device has, outside shard_map; inside where JAX defines it."""
    mesh = jax.make_mesh((world,), ("devices",))
    weight = eighths((3, 3), 7)

    def device(weight, x, y):
        z = jax.numpy.einsum("dc,nchw->ndhw", weight, x)
        return 2.0 * locally_adaptive_loss(z, y, kernel_size=1, axis_name="devices", **TRACED)

    z = np.einsum("dc,nchw->ndhw", weight, X)
    z_bar = lal_value_and_grad(z, Y, kernel_size=1, grad_output=2.0)[1]
    right = np.einsum("ndhw,nchw->dc", z_bar, X), np.einsum("dc,ndhw->nchw", weight, z_bar)
    put = partial(jax.device_put, device=jax.NamedSharding(mesh, P("devices")))
    arrays = jax.device_put(weight, jax.NamedSharding(mesh, P())), put(X), put(Y)
    specs = P(), P("devices"), P("devices")
    both = partial(jax.grad, argnums=(0, 1))
    calls = {
        f"outside, {check_vma=}": both(
            jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        )
        for check_vma in (True, False)
    }
    calls["inside"] = jax.shard_map(both(device), mesh=mesh, in_specs=specs, out_specs=specs[:2])
    for name, call in calls.items():
        for found, want in zip(jax.jit(call)(*arrays), right, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-15, err_msg=name)


def several_logits_of_one_batch_have_each_their_own_gradient(world):
    """vmap over logits, with labels that they share, inside shard_map and outside."""
    mesh = jax.make_mesh((world,), ("devices",))
    several = np.stack([X, 2 * X, -X])
    right = np.stack([lal_value_and_grad(x, Y, kernel_size=1)[1] for x in several])
    loss = partial(locally_adaptive_loss, kernel_size=1, axis_name="devices", **TRACED)
    cut = jax.device_put(several, jax.NamedSharding(mesh, P(None, "devices")))
    labels = jax.device_put(Y, jax.NamedSharding(mesh, P("devices")))
    for check_vma in (True, False):
        whole = partial(jax.shard_map, mesh=mesh, out_specs=P(), check_vma=check_vma)
        inside = whole(jax.vmap(loss, in_axes=(0, None)), in_specs=(P(None, "devices"), P("devices")))
        outside = jax.vmap(whole(loss, in_specs=(P("devices"), P("devices"))), in_axes=(0, None))
        for f in (inside, outside):
            found = jax.jit(jax.grad(lambda several, f=f: f(several, labels).sum()))(cut)
            np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-15, err_msg=f"{check_vma=}")


def the_mean_of_the_devices_losses_is_another_loss(world):
    loss = LocallyAdaptiveLoss(kernel_size=3)
    shards = [np.split(a, world) for a in (X, Y)]
    naive = np.mean([loss(*s) for s in zip(*shards, strict=True)])
    assert abs(naive / loss(X, Y) - 1) > 1e-3


def a_mesh_of_two_axes():
    options = {"kernel_size": 1}
    right = lal_value_and_grad(X, Y, pixel_weight=W, grad_output=2.0, **options)
    f, cut = over(jax.make_mesh((2, 2), ("rows", "columns")), options, ("rows", "columns"))
    held_to_the_whole(f, [cut(a) for a in (X, Y, W)], right, 1e-12, 1e-15)


def what_jit_cuts_itself_needs_nothing_said(world):
    f = partial(locally_adaptive_loss, kernel_size=1, **TRACED)
    cut = over(jax.make_mesh((world,), ("devices",)), {})[1]
    right = lal_value_and_grad(X, Y, kernel_size=1, grad_output=2.0)
    held_to_the_whole(f, [cut(X), cut(Y)], right, 1e-12, 1e-15)


def uneven_shards_are_refused_and_void_images_fill_them_up(world):
    """Five images on 2 or 4 devices."""
    x, y = np.concatenate([X, -X[2:3]]), np.concatenate([Y, Y[1:2]])
    f, cut = over(jax.make_mesh((world,), ("devices",)), {"kernel_size": 1})
    for call in (lambda: cut(x), lambda: f(x, y), lambda: jax.jit(f)(x, y)):
        with pytest.raises(ValueError, match="divi"):
            call()
    more = -len(x) % world
    x_full = np.concatenate([x, np.full((more, *x.shape[1:]), np.nan)])
    y_full = np.concatenate([y, np.full((more, *y.shape[1:]), VOID)])
    value, grad = lal_value_and_grad(x, y, kernel_size=1, grad_output=2.0)
    grad = np.concatenate([grad, np.zeros((more, *x.shape[1:]))])
    held_to_the_whole(f, [cut(x_full), cut(y_full)], (value, grad), 1e-12, 1e-15)


def a_nan_of_any_device_is_everyones(world):
    for p in (5.0, math.inf):
        x, y = X.copy(), Y.copy()
        x[3, 0, 2, 2], y[3] = np.nan, 0
        f, cut = over(jax.make_mesh((world,), ("devices",)), {"kernel_size": 1, "p": p})
        assert np.isnan(jax.jit(f)(cut(x), cut(y))), p


def the_callback_is_refused_inside_shard_map(world):
    """JAX would take one device's value for everyone's."""
    mesh = jax.make_mesh((world,), ("devices",))
    f = jax.shard_map(locally_adaptive_loss, mesh=mesh, in_specs=(P("devices"),) * 2, out_specs=P())
    x, y = (jax.device_put(a, jax.NamedSharding(mesh, P("devices"))) for a in (X, Y))
    for call in (f, jax.jit(f), jax.grad(f)):
        with pytest.raises(ValueError, match=r'jax.shard_map need engine="array"'):
            call(x, y)


def more_than_the_first_derivative_backwards_is_refused(world):
    for check_vma in (True, False):
        mesh = jax.make_mesh((world,), ("devices",))
        f, cut = over(mesh, {"kernel_size": 1}, check_vma=check_vma)
        x, y = cut(X), cut(Y)
        twice = jax.grad(lambda x, f=f, y=y: jax.grad(f)(x, y).sum())
        forward = jax.jit(lambda x, f=f, y=y: f(x, y))
        for call, error, told in (
            (jax.jit(twice), NotImplementedError, "axis_name= gives first derivatives only"),
            (lambda x, forward=forward: jax.jvp(forward, (x,), (x,)), TypeError, "forward-mode"),
        ):
            with pytest.raises(error, match=told):
                call(x)


def an_axis_that_the_mesh_has_not_is_told(world):
    """JAX's sums would end in an AssertionError without a word."""
    mesh = jax.make_mesh((world,), ("devices",))
    device = partial(locally_adaptive_loss, axis_name="device", **TRACED)
    f = jax.shard_map(device, mesh=mesh, in_specs=(P("devices"),) * 2, out_specs=P())
    cut = over(mesh, {})[1]
    with pytest.raises(NameError, match="unbound axis name: device"):
        jax.jit(f)(cut(X), cut(Y))


def a_device_that_does_not_come(world):
    """It sleeps before its part of the loss; XLA's timeout, which XLA_FLAGS sets, ends the program."""
    mesh = jax.make_mesh((world,), ("devices",))

    def late(x):
        time.sleep(60 if x.any() else 0)
        return x

    def device(x, y):
        x = jax.pure_callback(late, x, x)
        return locally_adaptive_loss(x, y, axis_name="devices", kernel_size=1, **TRACED)

    cut = jax.NamedSharding(mesh, P("devices"))
    x, y = np.zeros((world, 2, 1)), np.zeros((world, 1), np.int32)
    x[-1] = 1
    f = jax.shard_map(device, mesh=mesh, in_specs=(P("devices"),) * 2, out_specs=P())
    jax.block_until_ready(jax.jit(f)(*jax.device_put((x, y), cut)))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    world = jax.device_count()
    if sys.argv[1:] == ["late"]:
        a_device_that_does_not_come(world)
        sys.exit("it was waited for")
    the_whole_batchs_value_and_gradient(world)
    the_gradient_is_right_however_shard_map_is_told_to_check(world)
    several_logits_of_one_batch_have_each_their_own_gradient(world)
    an_axis_that_the_mesh_has_not_is_told(world)
    the_mean_of_the_devices_losses_is_another_loss(world)
    what_jit_cuts_itself_needs_nothing_said(world)
    uneven_shards_are_refused_and_void_images_fill_them_up(world)
    a_nan_of_any_device_is_everyones(world)
    more_than_the_first_derivative_backwards_is_refused(world)
    the_callback_is_refused_inside_shard_map(world)
    if world == 4:
        a_mesh_of_two_axes()
    print(f"{world} devices: all equal")
