"""Every kernel compiles for the GPUs of three generations, within stated registers and shared memory."""

import os
from unittest import mock

import pytest

from cuda_host.nvrtc import CUPY_ADDS, compile_for
from lalref.engines import kernels
from lalref.engines.kernels import TYPES, kernel_names
from lalref.engines.kernels_geometry import CHANNELS

try:
    from cupy.cuda import compiler, nvrtc

    nvrtc.getVersion()
except (RuntimeError, ImportError, OSError) as error:  # CuPy may be here, but not the compiler's library
    if os.environ.get("LALREF_NVRTC") == "needed":  # `make test-cuda-host`, which has installed both
        raise
    reason = (
        f"NOT COMPILED for any GPU: CuPy or NVRTC is not installed ({error}); make test-cuda-host has both"
    )
    pytest.skip(reason, allow_module_level=True)

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
THREADS = 256  # of a block, see kernels_geometry
SHARED_OF_STAGE_3 = 2 * 8 * kernels.THREADS  # bytes: to add up, and to find the largest
REGISTERS = {"float": 128, "double": 144}  # of a thread: so that a multiprocessor holds two blocks, and one


def every_kernel():
    """Each kernel once, with its working type."""
    return {
        name: T
        for dtype, (_, T) in TYPES.items()
        for space in kernels.SPACES
        for name in kernel_names(dtype, space, CHANNELS).values()
    }


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spilling(arch):
    kernels_of = every_kernel()
    used = compile_for(arch, kernels.source(), tuple(kernels_of), kernels.COMPILER_OPTIONS)
    assert set(used) == set(kernels_of)
    for name, use in used.items():
        assert (use.spilled, use.stack) == (0, 0), (name, use)
        assert use.registers <= REGISTERS[kernels_of[name]], (name, use)
        own = SHARED_OF_STAGE_3 if name.partition("<")[0] in kernels.STAGE_3 else 128
        assert use.shared <= own, (name, use)  # what else a block needs is asked for at launch


def test_these_are_the_options_that_cupy_passes():
    """Without a device, and so by CuPy's own insides."""
    passed = []

    def compile_program(program, options):
        passed.extend(options)
        raise InterruptedError

    with (
        mock.patch.object(nvrtc, "compileProgram", compile_program),
        mock.patch.object(compiler, "_preprocess", return_value=""),
        mock.patch.object(compiler, "_get_arch_for_options_for_nvrtc", return_value=("-arch=sm_90", "cubin")),
        mock.patch.object(compiler.function, "Module"),
        mock.patch.dict(os.environ, CUPY_CACHE_IN_MEMORY="1"),
        pytest.raises(InterruptedError),
    ):
        compiler._compile_module_with_cache("", kernels.COMPILER_OPTIONS, arch="90", name_expressions=("f",))
    assert sorted(passed) == sorted((*kernels.COMPILER_OPTIONS, *CUPY_ADDS, "-arch=sm_90"))


def test_registers_leave_room_for_a_block():
    assert max(REGISTERS.values()) * THREADS <= 2**16


def test_a_mistake_in_the_text_is_told_with_its_file_and_line():
    text = kernels.source().replace("call.reach_h", "call.reach_z")
    with pytest.raises(ValueError, match=r"kernels_pooling\.cu\(\d+\): error"):
        compile_for("sm_90", text, ("divisors<float>",), kernels.COMPILER_OPTIONS)
