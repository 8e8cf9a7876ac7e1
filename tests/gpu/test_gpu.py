"""The cuda engine on a real GPU; skipped with its reason where there is none."""

import ml_dtypes
import numpy as np
import pytest

import lalref
from lalref.bench.gpu import no_device
from lalref.engines.kernels import MOST_AXES
from lalref.oracle import golden
from lalref.oracle.cases import CASES
from lalref.oracle.inputs import VOID, blobs, eighths, scattered
from lalref.oracle.units import error_unit
from lalref.oracle.verify import in_units

REASON = no_device()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.labels.ndim - 1 <= MOST_AXES], ids=lambda case: case.name
)
def test_the_table_of_cases_within_two_error_units(cupy, case, dtype):
    right = golden.load()[case.name]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    x = cupy.asarray(case.given_logits.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))
    arguments = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in case.arguments.items()}
    value, grad = lalref.lal_value_and_grad(x, cupy.asarray(case.labels), **arguments)
    assert isinstance(value, cupy.ndarray)
    assert in_units(value.get(), right.value, unit.value).max(initial=0) <= 2
    assert in_units(grad.get(), right.grad, unit.grad).max(initial=0) <= 2


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [3, 5, 15])
def test_the_same_bits_on_every_run(cupy, space, kernel_size):
    x, y = (
        cupy.asarray(eighths((4, 21, 97, 131), 1).astype(np.float32)),
        cupy.asarray(blobs((4, 97, 131), 21)),
    )
    first = lalref.lal_value_and_grad(x, y, space=space, kernel_size=kernel_size)
    for _ in range(5):
        again = lalref.lal_value_and_grad(x, y, space=space, kernel_size=kernel_size)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 41, "sigma": None}, {"stride": 2}, {"normalize": "count"}],
    ids=["41 x 41", "stride 2", "count"],
)
def test_the_same_bits_on_every_run_by_other_ways(cupy, space, options):
    x = cupy.asarray(eighths((2, 5, 97, 131), 1).astype(np.float32))
    y = cupy.asarray(blobs((2, 97, 131), 5))
    first = lalref.lal_value_and_grad(x, y, space=space, **options)
    for _ in range(5):
        again = lalref.lal_value_and_grad(x, y, space=space, **options)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 3, 4, 5)])
def test_the_array_engine_gives_numpy_s_answers_on_the_device(cupy, shape):
    x, v, y = eighths(shape, 4), eighths(shape, 5), scattered((shape[0], *shape[2:]), 6, 3, VOID)
    there = [cupy.asarray(a) for a in (x, y, v)]
    for call, count in ((lalref.lal_value_and_grad, 2), (lalref.lal_jvp, 3), (lalref.lal_hvp, 3)):
        right = call(*(x, y, v)[:count], engine="array")
        found = call(*there[:count], engine="array")
        for a, b in zip(found, right, strict=True):
            np.testing.assert_allclose(a.get(), b, rtol=1e-11, atol=1e-14)


def test_auto_is_this_engine_for_cupy_arrays(cupy):
    x, y = cupy.zeros((1, 2, 3, 3)), cupy.zeros((1, 3, 3), dtype=cupy.int64)
    auto, cuda = (lalref.lal_value_and_grad(x, y, engine=name)[1] for name in ("auto", "cuda"))
    assert auto.tobytes() == cuda.tobytes()


SPIN = """
extern "C" __global__ void spin(long long cycles) {
    for (const long long start = clock64(); clock64() - start < cycles;) {}
}
"""
CYCLES = 10**9  # half a second and more, in which a call has long returned that waits for nothing
EVERYTHING = {"class_weight": (0.5, 2.0, 1.25), "empty": "raise"}


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("kernel_size", [3, 9])
@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"check": False}, False),
        ({"check": False, "class_weight": (0.5, 2.0, 1.25)}, False),
        (EVERYTHING, True),
    ],
    ids=["unchecked", "unchecked, class weights", "checked"],
)
def test_without_checks_a_call_returns_while_its_stream_is_busy(cupy, space, kernel_size, options, waits):
    spin = cupy.RawKernel(SPIN, "spin")
    x, y = cupy.asarray(eighths((1, 3, 64, 64), 2)), cupy.asarray(blobs((1, 64, 64), 3))
    weight = cupy.ones((1, 64, 64))
    cupy.cuda.Device().synchronize()

    def call():
        return lalref.lal_value_and_grad(
            x, y, pixel_weight=weight, space=space, kernel_size=kernel_size, **options
        )

    with cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(2):  # until kernels are loaded and the stream's pool has memory: both may wait
            right = [each.get() for each in call()]
        spin((1,), (1,), (np.int64(0),))
        stream.synchronize()
        spin((1,), (1,), (np.int64(CYCLES),))
        after_the_spin = cupy.cuda.Event()
        after_the_spin.record()
        found = call()
        assert after_the_spin.done == waits  # the stream itself may have the call's own kernels yet to run
        stream.synchronize()
    assert all(isinstance(each, cupy.ndarray) for each in found)
    assert found[0].shape == ()
    assert all(a.get().tobytes() == b.tobytes() for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("engine", ["cuda", "array"])
def test_logits_on_another_device_than_the_current_one(cupy, engine):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device only")
    given = eighths((2, 3, 20, 30), 7), blobs((2, 20, 30), 3)
    right = lalref.lal_value_and_grad(*map(cupy.asarray, given), engine=engine)
    with cupy.cuda.Device(1):
        there = [cupy.asarray(each) for each in given]
    found = lalref.lal_value_and_grad(*there, engine=engine)
    assert cupy.cuda.Device().id == 0
    for a, b in zip(found, right, strict=True):
        assert a.device.id == 1
        assert a.tobytes() == b.tobytes()


def test_torch_tensors_by_dlpack_without_a_copy_in_torch_s_stream(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    x = torch.as_tensor(eighths((1, 3, 32, 48), 3), device="cuda")
    y = torch.as_tensor(blobs((1, 32, 48), 3), device="cuda")
    right = lalref.lal_value_and_grad(x.cpu().numpy(), y.cpu().numpy())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
        shared = cupy.from_dlpack(x.detach())
        assert shared.data.ptr == x.data_ptr()
        value, grad = lalref.lal_value_and_grad(shared, cupy.from_dlpack(y))
        grad = torch.from_dlpack(grad)
    stream.synchronize()
    np.testing.assert_allclose(value.get(), right[0], rtol=1e-12)
    np.testing.assert_allclose(grad.cpu().numpy(), right[1], rtol=1e-10, atol=1e-14)
