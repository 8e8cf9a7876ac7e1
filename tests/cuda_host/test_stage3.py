"""Stage 3 in the kernels is stage 3 in `lalref.minkowski`: parts, and what goes back to each window."""

import itertools

import numpy as np
import pytest
from samples import INF, NAN, X, Y, each_option, same_bits

import lalref
from cuda_host.engine import ORDERS, on_host
from lalref import minkowski
from lalref.engines import kernels
from lalref.oracle.inputs import eighths, scattered, weights

SHAPE = (2, 19, 41)  # seven blocks, the last of them cut
ELL = abs(eighths(SHAPE, 21)) ** 3
VALID = scattered(SHAPE, 22, 4) > 0
OMEGA = np.where(VALID, weights(SHAPE, 23), 0.0)
PIXEL_WEIGHT = weights(Y.shape, 4)


def kernels_stage_3(ell, omega, valid, options, upstream=1.5, total=None, **how):
    """Parts and shares by the kernels, of losses that are 0 where not valid, as the engine has them."""
    with on_host(**how), np.errstate(all="ignore"):
        total = total or kernels.parts_of(ell, omega, valid, options)
        return total, kernels._shares(ell, omega, valid, total, upstream)


def right_stage_3(ell, omega, valid, options, upstream=1.5, total=None):
    omega = valid.astype(np.float64) if omega is None else omega
    with np.errstate(all="ignore"):
        total = total or minkowski.parts(ell, omega, valid, options)
        g = np.where(valid, minkowski.shares(ell, omega, total) * upstream, 0.0)
        return total, g.astype(ell.dtype)


def agree(found, right):
    for name in ("maximum", "power_sum", "weight"):
        np.testing.assert_allclose(getattr(found[0], name), getattr(right[0], name), rtol=1e-13)
    assert found[0].count == right[0].count
    assert found[0].count.dtype == right[0].count.dtype
    assert found[0].dtype == right[0].dtype
    rtol, flushed = (1e-12, 0) if right[1].dtype == np.float64 else (2e-7, np.finfo(np.float32).tiny)
    np.testing.assert_allclose(found[1], right[1], rtol=rtol, atol=flushed)
    assert found[1].dtype == right[1].dtype


LOSSES = {
    "many": ELL,
    "equal": np.ones(SHAPE),
    "none": np.zeros(SHAPE),
    "huge": 1e300 * (1 + ELL),
    "tiny": 1e-30 * ELL,
    "one infinite": np.where(np.arange(41) == 7, INF, ELL),
    "one that is none": np.where(np.arange(41) == 40, NAN, ELL),
}


@pytest.mark.parametrize("ell", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("omega", [None, OMEGA], ids=["all alike", "weights"])
@pytest.mark.parametrize("p", [1.0, 2.5, 300.0, INF])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_is_what_the_other_engines_do(ell, omega, p, reduction):
    options = lalref.LocallyAdaptiveLoss(p=p, reduction=reduction)
    for dtype in (np.float64, np.float32):
        if dtype == np.float32 and ell is LOSSES["huge"]:
            continue
        given = np.where(VALID, ell, 0).astype(dtype), omega, VALID, options
        agree(kernels_stage_3(*given), right_stage_3(*given))


def test_a_weight_that_is_not_allowed_leaves_no_plausible_number():
    options = lalref.LocallyAdaptiveLoss(check=False)
    omega = np.where(np.arange(41) == 11, np.where(VALID, NAN, 0.0), OMEGA)
    given = np.where(VALID, ELL, 0), omega, VALID, options
    found = kernels_stage_3(*given)
    agree(found, right_stage_3(*given))
    assert np.isnan(found[0].maximum)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3,), (1, 1), SHAPE])
def test_maps_of_any_size_by_few_blocks(shape, monkeypatch):
    monkeypatch.setattr(kernels, "MOST_BLOCKS", 3)
    ell, valid = abs(eighths(shape, 24)), np.ones(shape, bool)
    given = ell, None, valid, lalref.LocallyAdaptiveLoss()
    agree(kernels_stage_3(*given), right_stage_3(*given))


def test_the_shares_of_a_part_are_of_the_whole():
    options = lalref.LocallyAdaptiveLoss(p=3)
    given = [(np.where(VALID, ell, 0), OMEGA, VALID, options) for ell in (ELL, 2 * ELL + 1)]
    whole = lalref.combine(*(right_stage_3(*each)[0] for each in given))
    for each in given:
        agree(kernels_stage_3(*each, total=whole), right_stage_3(*each, total=whole))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_order_of_threads_and_blocks_changes_a_bit(dtype):
    for p, omega in itertools.product((5.0, INF), (None, OMEGA)):
        given = ELL.astype(dtype), omega, VALID, lalref.LocallyAdaptiveLoss(p=p)
        results = [kernels_stage_3(*given, order=order) for order in ORDERS.values()]
        for total, g in results[1:]:
            assert same_bits(g, results[0][1])
            assert all(
                same_bits(getattr(total, k), getattr(results[0][0], k))
                for k in ("maximum", "power_sum", "weight", "count")
            )


@each_option
def test_the_front_door_comes_here_and_asks_minkowski_for_no_map(options, monkeypatch):
    if options.get("reduction") == "none":
        return
    right = lalref.lal_value_and_grad(X, Y, pixel_weight=PIXEL_WEIGHT, engine="array", **options)
    for name in ("parts", "shares"):
        monkeypatch.setattr(minkowski, name, pytest.fail)
    with on_host(small_tiles=True):
        value, grad = lalref.lal_value_and_grad(X, Y, pixel_weight=PIXEL_WEIGHT, **options)
        assert same_bits(lalref.lal_loss(X, Y, pixel_weight=PIXEL_WEIGHT, **options), value)
    np.testing.assert_allclose(value, right[0], rtol=1e-12)
    np.testing.assert_allclose(grad, right[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("fault", ["no barrier before a block adds up", "no barrier while a block adds up"])
def test_without_a_barrier_some_order_of_threads_gives_another_number(fault):
    options = lalref.LocallyAdaptiveLoss()
    right = right_stage_3(ELL, OMEGA, VALID, options)[0]
    found = [
        kernels_stage_3(ELL, OMEGA, VALID, options, order=order, fault=fault)[0] for order in ORDERS.values()
    ]
    assert not np.isclose([float(each.weight) for each in found], right.weight).all()
