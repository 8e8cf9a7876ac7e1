"""How often a call waits for the device: once for everything that is checked, and never with check=False."""

import importlib.util
import operator
from pathlib import Path

import numpy as np
import pytest
from samples import OMEGA, X, Y, each_option, refused, same_bits

import lalref
from cuda_host.stand_in import Array, Device, behind_a_wall, cupy_of
from lalref.arrays import Refusals
from lalref.oracle.inputs import eighths

EVERYTHING = {"class_weight": (0.5, 2.0, 1.25), "empty": "raise"}


def loss_alone(loss, x, y, **weights):
    return (loss(x, y, **weights),)


def value_and_grad(loss, x, y, **weights):
    return loss.value_and_grad(x, y, **weights)


def forward_and_backward(loss, x, y, **weights):
    value, cache = loss.forward(x, y, **weights)
    return value, loss.backward(cache, 1.5)


def in_parts(loss, x, y, **weights):
    total = lalref.combine(loss.parts(x, y, **weights))
    return loss.value_and_grad(x, y, total=total, **weights)


each_call = pytest.mark.parametrize("call", [loss_alone, value_and_grad, forward_and_backward])


@each_option
@each_call
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("check", "waits"), [(True, 1), (False, 0)])
def test_one_wait_for_all_checks_and_none_without(call, options, dtype, check, waits):
    loss = lalref.LocallyAdaptiveLoss(check=check, **options)
    with behind_a_wall() as wall:
        x, y, weight = (wall.asarray(a) for a in (X.astype(dtype), Y, OMEGA))
        found = call(loss, x, y, pixel_weight=weight)
        assert wall.waits == waits
        assert all(isinstance(each, Array) for each in found)
    with behind_a_wall() as wall:  # the answer is the same, whoever waits
        checked = call(
            lalref.LocallyAdaptiveLoss(**options),
            *(wall.asarray(a) for a in (X.astype(dtype), Y)),
            pixel_weight=wall.asarray(OMEGA),
        )
    assert all(same_bits(a.get(), b.get()) for a, b in zip(found, checked, strict=True))


@each_call
def test_labels_device_weights_and_an_empty_batch_are_one_wait_together(call):
    loss = lalref.LocallyAdaptiveLoss(**EVERYTHING)
    with behind_a_wall() as wall:
        call(loss, wall.asarray(X), wall.asarray(Y), pixel_weight=wall.asarray(OMEGA))
        assert wall.waits == 1


@each_option
def test_an_upstream_gradient_on_the_device_is_not_waited_for(options):
    loss = lalref.LocallyAdaptiveLoss(check=False, **options)
    with behind_a_wall() as wall:
        x, y = wall.asarray(X), wall.asarray(Y)
        shape = loss(x, y).shape  # () but for reduction="none"
        upstream = abs(eighths(shape, 6)) + 2 if shape else np.float32(3)
        _, grad = loss.value_and_grad(x, y, grad_output=wall.asarray(upstream))
        _, cache = loss.forward(x, y)
        again = loss.backward(cache, wall.asarray(upstream))
        assert wall.waits == 0
    _, right = lalref.lal_value_and_grad(X, Y, engine="array", grad_output=upstream, **options)
    for found in (grad, again):
        np.testing.assert_allclose(found.get(), right, rtol=1e-10, atol=1e-14)


def test_whether_a_batch_is_empty_is_asked_without_checks_too_and_then_it_is_the_one_wait():
    with behind_a_wall() as wall:
        lalref.lal_loss(wall.asarray(X), wall.asarray(Y), check=False, empty="raise")
        assert wall.waits == 1


def test_checks_that_are_read_one_by_one_would_be_noticed(monkeypatch):
    where = Refusals.where

    def at_once(self, *arguments, **named):
        where(self, *arguments, **named)
        self.speak()

    monkeypatch.setattr(Refusals, "where", at_once)
    with behind_a_wall() as wall:
        lalref.lal_loss(wall.asarray(X), wall.asarray(Y), pixel_weight=wall.asarray(OMEGA), **EVERYTHING)
        assert wall.waits > 1


def test_class_weights_on_the_device_are_read_once_when_the_loss_is_made():
    with behind_a_wall() as wall:
        loss = lalref.LocallyAdaptiveLoss(class_weight=wall.asarray([0.5, 2.0, 1.25]), check=False)
        assert wall.waits == 1
        loss(wall.asarray(X), wall.asarray(Y))
        assert wall.waits == 1
    assert loss == lalref.LocallyAdaptiveLoss(class_weight=(0.5, 2.0, 1.25), check=False)


def test_parts_wait_once_for_each_call():
    with behind_a_wall() as wall:
        in_parts(lalref.LocallyAdaptiveLoss(), wall.asarray(X), wall.asarray(Y))
        assert wall.waits == 2
        in_parts(lalref.LocallyAdaptiveLoss(check=False), wall.asarray(X), wall.asarray(Y))
        assert wall.waits == 2


BAD_LABELS = np.where(Y == 1, 7, Y)
BAD_WEIGHTS = -OMEGA


@pytest.mark.parametrize(
    ("labels", "weight", "said"),
    [
        (BAD_LABELS, OMEGA, ("labels must be in [0, 3)", "are not: 7")),
        (Y, BAD_WEIGHTS, ("pixel_weight must be finite and >= 0", "first -")),
        (np.full_like(Y, 255), OMEGA, ("no valid window",)),
        (BAD_LABELS, BAD_WEIGHTS, ("labels must be in [0, 3)",)),
    ],
    ids=["labels", "weights", "no window", "labels and weights"],
)
def test_one_flag_still_tells_which_check_failed(labels, weight, said):
    with behind_a_wall() as wall, refused(ValueError, *said):
        x, y, weight = (wall.asarray(a) for a in (X, labels, weight))
        lalref.lal_loss(x, y, pixel_weight=weight, **EVERYTHING)


@pytest.fixture(scope="module")
def on_a_gpu():
    """The test that is made for a GPU, of its own file."""
    path = Path(__file__).parents[1] / "gpu" / "test_gpu.py"
    spec = importlib.util.spec_from_file_location("test_gpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.test_without_checks_a_call_returns_while_its_stream_is_busy


@pytest.mark.parametrize("options", [{"check": False}, EVERYTHING], ids=["unchecked", "checked"])
@pytest.mark.parametrize("expected", [True, False])
def test_the_gpus_own_test_tells_a_call_that_waits_from_one_that_does_not(on_a_gpu, options, expected):
    waits = options is EVERYTHING
    with behind_a_wall() as wall:
        cupy = cupy_of(wall, [0.0])
        cupy.ndarray = Array
        if expected == waits:
            on_a_gpu(cupy, "logits", 3, options, expected)
        else:
            with pytest.raises(AssertionError):
                on_a_gpu(cupy, "logits", 3, options, expected)


def inspected(loss, x, y, **weights):
    maps = loss.inspect(x, y, **weights)
    return maps.window_loss, maps.share


def second_derivative(loss, x, y, **weights):
    return loss.hvp(x, y, x, **weights)


def first_derivative(loss, x, y, **weights):
    return loss.jvp(x, y, x, **weights)


@pytest.mark.parametrize("engine", ["auto", "array"])
@pytest.mark.parametrize(
    "call",
    [
        loss_alone,
        value_and_grad,
        forward_and_backward,
        in_parts,
        inspected,
        first_derivative,
        second_derivative,
    ],
)
@pytest.mark.parametrize("options", [{}, {"reduction": "none", "axis": -1}, EVERYTHING], ids=str)
def test_everything_runs_on_the_device_of_the_logits_whichever_is_current(call, options, engine, monkeypatch):
    if "reduction" in options and call is in_parts:
        return
    loss = lalref.LocallyAdaptiveLoss(engine=engine, **options)
    with behind_a_wall() as wall:
        x = np.moveaxis(X, 1, options.get("axis", 1))
        with Device(wall, 1):
            given = [wall.asarray(a) for a in (x, Y)]
            weight = wall.asarray(OMEGA)
        found = call(loss, *given, pixel_weight=weight)
        assert wall.entered == [0]
        assert {each.device.id for each in found} == {1}


def test_an_array_on_another_device_is_refused_by_the_door_and_by_the_stand_in():
    with behind_a_wall() as wall:
        x = wall.asarray(X)
        with Device(wall, 1):
            y = wall.asarray(Y)
        with refused(ValueError, "must be on one device", "id=1"):
            lalref.lal_loss(x, y)
        with pytest.raises(ValueError, match="the array is on device 1"):
            y + 1


@pytest.mark.parametrize("read", [bool, float, int, operator.index, Array.item, Array.tolist, Array.tobytes])
def test_every_way_to_read_a_number_counts_as_a_wait(read):
    with behind_a_wall() as wall:
        read(wall.asarray(1))
        assert wall.waits == 1


def test_the_stand_in_is_as_strict_as_cupy():
    with behind_a_wall() as wall:
        there = wall.asarray([1.0, 2.0])
        for mixed in (
            lambda: np.asarray(there),
            lambda: there + np.ones(2),
            lambda: np.ones(2) + there,
            lambda: wall.where(np.ones(2, bool), there, 0.0),
        ):
            with pytest.raises(TypeError):
                mixed()
        assert wall.waits == 0
