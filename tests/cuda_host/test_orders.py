"""Equal bytes in whatever order threads and blocks run: as numbered, reversed, shuffled; `make nightly` shuffles more.

Every launch of a whole call of value and gradient runs in that order.
"""

import numpy as np
import pytest
from samples import DTYPES, OMEGA, OPTIONS, X, Y, each_dtype, of_dtype, same_bits

import lalref
from cuda_host.engine import NIGHTLY, ORDERS, on_host
from lalref.engines import kernels_geometry
from lalref.oracle.cases import CASES
from lalref.oracle.inputs import blobs, eighths

TABLE = {case.name: case for case in CASES if case.labels.ndim <= 3}


def the_same_in_every_order(x, y, small_tiles=True, fault="", **arguments):
    """Whether value and gradient have the same bytes in each of `ORDERS`."""
    results = []
    for order in ORDERS.values():
        with on_host(order=order, small_tiles=small_tiles, fault=fault):
            results.append(lalref.lal_value_and_grad(x, y, **arguments))
    return all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@each_dtype
@pytest.mark.parametrize("name", TABLE)
def test_of_the_table_of_cases(name, dtype):
    """In small tiles, so that a case has several blocks; also in a device's, by day in one dtype, by night in each."""
    case, in_turn = TABLE[name], DTYPES[list(TABLE).index(name) % len(DTYPES)]
    x = of_dtype(case.given_logits, dtype)
    assert the_same_in_every_order(x, case.labels, **case.arguments)
    if dtype == in_turn or NIGHTLY:
        assert the_same_in_every_order(x, case.labels, small_tiles=False, **case.arguments)


@each_dtype
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_with_every_option(options, dtype):
    assert the_same_in_every_order(of_dtype(X, dtype), Y, pixel_weight=OMEGA, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shared", [kernels_geometry.SHARED_MEMORY, 2500], ids=["at once", "in sweeps"])
@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [5, 15])
def test_pooled_by_class(kernel_size, space, shared, dtype, monkeypatch):
    monkeypatch.setattr(kernels_geometry, "SHARED_MEMORY", shared)
    x, y = eighths((2, 5, 19, 37), 8).astype(dtype), blobs((2, 19, 37), 3, 5, 11)
    with on_host(small_tiles=True):
        options = lalref.LocallyAdaptiveLoss(kernel_size=kernel_size)
        geometry = kernels_geometry.Geometry.of(x, y.shape[1:], options, x.dtype)
    span, reach_w, most = (int(geometry.call[name][0]) for name in ("span", "reach_w", "most"))
    assert most > 0
    if kernel_size == 15:
        assert (span <= reach_w) == (shared == 2500)
    assert the_same_in_every_order(x, y, kernel_size=kernel_size, space=space)


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [("no barrier before the sums are read", "bfloat16"), ("two blocks that write one address", "float64")],
)
def test_an_answer_that_depends_on_the_order_is_noticed(fault, dtype):
    case = TABLE["kernel-15"]
    x = of_dtype(case.given_logits, dtype)
    assert the_same_in_every_order(x, case.labels, **case.arguments)
    assert not the_same_in_every_order(x, case.labels, fault=fault, **case.arguments)
