"""What the CPU runtime promises: sanitizers find nothing in the kernels, and find what is planted there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lalref
from cuda_host import host
from cuda_host.engine import FAULTS, on_host
from cuda_host.host import HostModule
from lalref.oracle.inputs import blobs, eighths

LIBRARIES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
TESTS = Path(__file__).parents[1]


def sanitized(kind, *arguments):
    """Run the cases of `cuda_host.sanitized` in a process of their own."""
    library = subprocess.check_output(["g++", f"-print-file-name={LIBRARIES[kind]}"], text=True).strip()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cuda_host.sanitized", kind, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_sanitizer_finds_nothing(kind):
    done = sanitized(kind)
    assert done.returncode == 0, done.stderr
    assert "SUMMARY" not in done.stderr
    assert "runtime error" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("no barrier before the sums are read", "thread", "data race"),
        ("no barrier before the sums are overwritten", "thread", "data race"),
        ("no barrier before a block adds up again", "thread", "data race"),
        ("a shuffle taken for a barrier", "thread", "data race"),
        ("two blocks that write one address", "thread", "data race"),
        ("a write past the end of a map", "address", "heap-buffer-overflow"),
        ("a write past the end of a shared array", "address", "use-after-poison"),
        ("a write past the end of a shared array", "undefined", "out of bounds"),
        ("a write past the end of dynamic shared memory", "address", "use-after-poison"),
        ("a barrier that some threads pass by", "undefined", "is not reached by every thread it waits for"),
    ],
)
def test_a_planted_fault_is_found(fault, kind, said):
    done = sanitized(kind, fault)
    assert done.returncode != 0
    assert said in done.stderr
    assert re.search(r"kernels_(pooling|stage3)\.cu:|on line", done.stderr)


def test_every_fault_is_planted_somewhere():
    planted = next(
        mark.args[1] for mark in test_a_planted_fault_is_found.pytestmark if mark.name == "parametrize"
    )
    elsewhere = {
        "a pixel's index of 31 bits",  # in test_indices.py
        "a logit's index of 31 bits",
        "a row's index of 31 bits, by cells",
        "a row's index of 31 bits, by class",
        "a window's index of 31 bits, read",
        "a window's index of 31 bits, written",
        "a window's index of 31 bits, counted on",
        "a number of windows of 31 bits",
        "no barrier before a block adds up",  # in test_stage3.py
        "no barrier while a block adds up",
    }
    assert {fault for fault, *_ in planted} | elsewhere == set(FAULTS)


def test_a_missing_barrier_shows_in_the_numbers_without_a_sanitizer():
    x, y = eighths((1, 3, 9, 13), 1).astype(np.float32), blobs((1, 9, 13), 2)
    with on_host(small_tiles=True):
        right = lalref.lal_value_and_grad(x, y, kernel_size=7)[1]
    with on_host(small_tiles=True, fault="no barrier before the sums are read"):
        wrong = lalref.lal_value_and_grad(x, y, kernel_size=7)[1]
    assert not np.allclose(right, wrong)


def test_a_barrier_that_some_threads_pass_by_is_an_error_with_its_line_and_not_a_hang():
    x, y = np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 4, 4), int)
    where = r"__syncthreads on line \d+ is not reached by every thread it waits for: thread .* of block 0"
    with on_host(fault="a barrier that some threads pass by"), pytest.raises(RuntimeError, match=where):
        lalref.lal_loss(x, y)


# --- The launch is held to what a device takes --------------------------------------------------------------

TEXT = """
__global__ void scale(const float* in, float* out, float factor, int n) {
    __shared__ float shared[32];
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    shared[threadIdx.x] = i < n ? in[i] : 0;
    const int wet = __syncthreads_count(shared[threadIdx.x] > 0);
    const float next = __shfl_down_sync(0xffffffffu, shared[threadIdx.x], 1);
    if (i < n) out[i] = factor * next + wet;
}
"""
IN, FACTOR, N = np.arange(64, dtype=np.float32), np.float32(2), np.int32(64)


@pytest.fixture(scope="module")
def scale():
    return HostModule(TEXT, ["scale"]).get_function("scale")


def test_threads_blocks_shuffles_and_votes(scale):
    out = np.zeros(64, np.float32)
    scale((2,), (32,), (IN, out, FACTOR, N))
    last = np.arange(64) % 32 == 31  # beyond the warp a lane gets its own number back
    assert (out == 2 * np.where(last, IN, IN + 1) + np.where(np.arange(64) < 32, 31, 32)).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((IN.astype(np.float64), IN.copy(), FACTOR, N), "argument 0 is P8, the kernel has P4"),
        ((IN, IN.copy(), np.float64(2), N), "argument 2 is f8, the kernel has f4"),
        ((IN, IN.copy(), FACTOR, np.int64(64)), "argument 3 is i8, the kernel has i4"),
        ((IN, np.float32(0), FACTOR, N), "argument 1 is no array"),
        ((IN, np.broadcast_to(np.float32(0), 64), FACTOR, N), "argument 1 is a read-only array"),
    ],
)
def test_an_argument_that_does_not_fit_the_signature(scale, arguments, said):
    with pytest.raises(TypeError, match=said):
        scale((2,), (32,), arguments)


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((0,), (32,), 0),
        ((1,), (32, 64), 0),
        ((1, 70000), (32,), 0),
        ((1,), (32,), 50000),
        ((2**31,), (1,), 0),
    ],
)
def test_a_launch_that_no_device_takes(scale, grid, block, shared):
    with pytest.raises(ValueError, match="no device launches"):
        scale(grid, block, (IN, IN.copy(), FACTOR, N), shared_mem=shared)


def test_a_shared_declaration_that_is_not_understood():
    with pytest.raises(ValueError, match="__shared__"):
        host.to_host("__shared__ struct { int a; } odd;")


def test_text_that_is_not_cuda():
    with pytest.raises(RuntimeError, match="g\\+\\+ says"):
        HostModule("__global__ void f() { return 1 }", ["f"])
