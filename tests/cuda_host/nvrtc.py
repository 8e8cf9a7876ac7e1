"""Compiles CUDA text for a device that is not there, and says what each kernel takes of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

# What CuPy itself asks for beside a RawModule's own options; the compiler takes the last of two that disagree.
CUPY_ADDS = ("-ftz=true", "--device-as-default-execution-space")


@dataclasses.dataclass(frozen=True)
class Use:
    """Of one thread: registers, bytes of stack, bytes spilled; of a block: bytes of static shared memory."""

    registers: int
    stack: int
    spilled: int
    shared: int


def compile_for(arch: str, text: str, names: Sequence[str], options: Sequence[str]) -> dict[str, Use]:
    """Compile for `arch` ("sm_90") with NVRTC as CuPy would; return what each of `names` uses.

    Raises
    ------
    ValueError
        The text is not right; the message is the compiler's.
    """
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, (*options, *CUPY_ADDS, f"-arch={arch}", "--ptxas-options=-v"))
        except nvrtc.NVRTCError:
            raise ValueError(nvrtc.getProgramLog(program)) from None
        log = nvrtc.getProgramLog(program)
        reports = {re.match(r"'(\w+)'", part)[1]: part for part in log.split("Compiling entry function ")[1:]}
        return {name: _use(reports[nvrtc.getLoweredName(program, name)]) for name in names}
    finally:
        nvrtc.destroyProgram(program)


def _use(report: str) -> Use:
    def number(pattern: str) -> int:
        found = re.search(pattern, report)
        return int(found[1]) if found else 0

    return Use(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores"),
        number(r"(\d+) bytes smem"),
    )
