"""The cuda engine measured on a GPU: checked, then timed, and written down with what it was measured on.

    python -m lalref.bench.gpu [--report reports/gpu.json] [--quick]

The report holds the sha256 of every kernel file, so that a test can say when it no longer belongs to the
kernels. Contestants run in one stream, on several input sets in turn so that no cache keeps one, timed by
CUDA events. Before one is timed its answer is compared: lalref's with the array engine's, the others' with
lalref's. One that fails or is wrong is named with its error, and the others go on. Where that is lalref itself
or the copy, what was measured is kept, but is no report.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lalref.engines import kernels
from lalref.engines.kernels_geometry import MOST_AXES

Array = Any

REPORT = Path("reports") / "gpu.json"
SHAPES = ((8, 21, 513, 513), (16, 19, 1024, 1024))
QUICK = ((2, 21, 321, 321),)
WINDOWS = (3, 5, 7, 15, 31)
LARGEST_TORCH_WINDOW = {"torch shift and mask": 7, "torch shift and mask, compiled": 5}
NEEDED = {"copy", "lalref cuda"}
MOST_UNITS = 2  # of error, (20)
MOST_OFF = 1e-4  # relative to the largest entry, of value and gradient at the shape that is timed, in float32
INPUT_SETS, WARM_UP, ROUNDS = 3, 3, 25


def sources() -> dict[str, str]:
    """Return the sha256 of each kernel file by name.

    Examples
    --------
    >>> from lalref.bench.gpu import sources
    >>> sorted(sources())
    ['kernels.cu', 'kernels_logits.cu', 'kernels_pooling.cu', 'kernels_probabilities.cu', 'kernels_stage3.cu']
    """
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in kernels.FILES}


def changed(report: Path) -> list[str]:
    """Return the kernel files that are not those that `report` was measured with."""
    measured = json.loads(report.read_text(encoding="utf-8"))["sources"]
    now = sources()
    return sorted(name for name in measured.keys() | now.keys() if measured.get(name) != now.get(name))


def no_device() -> str:
    """Say why nothing can be measured here; empty where there is a GPU."""
    import numpy as np

    from lalref import LocallyAdaptiveLoss

    reason = kernels.why_not(np.zeros((1, 1)), LocallyAdaptiveLoss())
    return "" if reason.startswith("takes CuPy arrays") else f"the cuda engine {reason}"


def no_torch() -> str:
    """Say why torch is not among the contestants; empty where it is."""
    try:
        import torch
    except ImportError as error:
        return f"torch can't be imported: {error}"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def accuracy() -> dict[str, float]:
    """Return the largest error in error units (20) over the table of cases, by dtype."""
    import cupy
    import ml_dtypes
    import numpy as np

    from lalref import lal_value_and_grad
    from lalref.oracle import golden
    from lalref.oracle.cases import CASES
    from lalref.oracle.units import error_unit
    from lalref.oracle.verify import in_units

    worst = {}
    for dtype in kernels.TYPES:
        errors = [0.0]
        for case in CASES:
            if case.labels.ndim - 1 > MOST_AXES:
                continue
            right = golden.load()[case.name]
            unit = error_unit(case, dtype, right.value[0], right.grad[0])
            x = case.given_logits.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            arguments = {
                k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in case.arguments.items()
            }
            value, grad = lal_value_and_grad(
                cupy.asarray(x), cupy.asarray(case.labels), engine="cuda", **arguments
            )
            errors += [
                float(in_units(a.get(), b, u).max(initial=0))
                for a, b, u in ((value, right.value, unit.value), (grad, right.grad, unit.grad))
            ]
        worst[dtype] = max(errors)
    return worst


def milliseconds(call: Callable[[int], object], rounds: int) -> list[float]:
    """Time call(i) by CUDA events in the current stream; i counts the input sets in turn."""
    import cupy

    times = []
    for i in range(WARM_UP + rounds):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        call(i % INPUT_SETS)
        end.record()
        end.synchronize()
        if i >= WARM_UP:
            times.append(float(cupy.cuda.get_elapsed_time(begin, end)))
    return times


class Contestant(NamedTuple):
    """What is timed, and what its answer has to be: value and gradient, each by the number of an input set."""

    call: Callable[[int], tuple[Any, Any]]
    right: Callable[[int], tuple[Any, Any]]


def contestants(shape: tuple[int, int, int, int], kernel_size: int) -> dict[str, Contestant]:
    """Return what is timed, by name."""
    import cupy

    from lalref import LocallyAdaptiveLoss
    from lalref.bench import inputs

    N, C, H, W = shape
    logits, labels = inputs.logits(shape), inputs.labels("blobs", (N, H, W), C)
    shifts = [i * H // INPUT_SETS for i in range(INPUT_SETS)]  # so that no set is in the cache for another
    x = [cupy.asarray(np.roll(logits, shift, axis=2)) for shift in shifts]
    y = [cupy.asarray(np.roll(labels, shift, axis=1)) for shift in shifts]
    copies = cupy.empty_like(x[0])

    def lal(engine: str, **options: Any) -> Callable[[int], tuple[Any, Any]]:
        loss = LocallyAdaptiveLoss(engine=engine, **options)
        return lambda i: loss.value_and_grad(x[i], y[i])

    def copy(i: int) -> tuple[Any, Any]:
        cupy.copyto(copies, x[i])  # reads and writes N·C·H·W·4 bytes
        return copies, copies

    ours = lal("cuda", kernel_size=kernel_size)
    found = {
        "copy": Contestant(copy, lambda i: (x[i], x[i])),
        "lalref cuda": Contestant(ours, lal("array", kernel_size=kernel_size)),
    }
    if no_torch():
        return found
    import torch
    from torch.nn.functional import cross_entropy

    from lalref.bench.contestants import _torch_shift
    from lalref.bench.inputs import VOID

    leaves = [torch.from_dlpack(each) for each in x]
    classes = [torch.from_dlpack(each).long() for each in y]

    def both(function: Callable[[Any, Any], Any]) -> Callable[[int], tuple[Any, Any]]:
        def call(i: int) -> tuple[Any, Any]:
            leaf = leaves[i].detach().requires_grad_()
            value = function(leaf, classes[i])
            value.backward()
            return value.detach(), leaf.grad

        return call

    plain = both(lambda x, y: cross_entropy(x, y, ignore_index=VOID))
    found["torch cross_entropy"] = Contestant(plain, lal("cuda", kernel_size=1, p=1))
    shift = _torch_shift(kernel_size)
    if kernel_size <= LARGEST_TORCH_WINDOW["torch shift and mask"]:
        found["torch shift and mask"] = Contestant(both(shift), ours)
    if kernel_size <= LARGEST_TORCH_WINDOW["torch shift and mask, compiled"]:
        torch.compiler.reset()  # else what other windows compiled counts against a limit
        compiled = both(torch.compile(shift, dynamic=False))
        found["torch shift and mask, compiled"] = Contestant(compiled, ours)
    return found


def check(contestant: Contestant) -> None:
    """Hold a contestant's answer for the first input set to the right one.

    Raises
    ------
    ValueError
        Its value or its gradient is off by more than `MOST_OFF`.
    """
    import cupy

    answers = zip(("value", "gradient"), contestant.call(0), contestant.right(0), strict=True)
    for what, found, right in answers:
        found, right = cupy.from_dlpack(found), cupy.from_dlpack(right)
        off, largest = (float(cupy.max(cupy.abs(each))) for each in (found - right, right))
        if not off <= MOST_OFF * largest:
            raise ValueError(f"its {what} is off by {off:.1e}, of {largest:.1e} at most: it is not timed")


def measure(
    shapes: Sequence[tuple[int, int, int, int]], windows: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Check and time every contestant on every shape and window; medians in milliseconds, and what they come to."""
    results = []
    for shape in shapes:
        smallest = None  # window, the first of `windows`: its time
        for kernel_size in windows:
            medians, failures = {}, {}
            for name, contestant in contestants(shape, kernel_size).items():
                try:
                    check(contestant)
                    medians[name] = statistics.median(milliseconds(contestant.call, rounds))
                except Exception as error:  # too little memory, say: the others are still worth their time
                    failures[name] = f"{type(error).__name__}: {error}"
                    print(f"{shape}, {kernel_size}: {name} failed: {failures[name]}", file=sys.stderr)
            result = {
                "shape": shape,
                "kernel_size": kernel_size,
                "milliseconds": medians,
                "failures": failures,
            }
            results.append(result)
            if not medians.keys() >= NEEDED:
                continue
            ours = medians["lalref cuda"]
            if kernel_size == windows[0]:
                smallest = ours
            plain = medians.get("torch cross_entropy")
            of_torch = [time for name, time in medians.items() if name.startswith("torch shift")]  # this loss
            # a copy moves 2 · N·C·H·W · 4 bytes; the goals are stated in 3 of them
            result["of moving three times the logits"] = ours / (1.5 * medians["copy"])
            result["of cross_entropy"] = ours / plain if plain else None
            result["faster than the best torch"] = min(of_torch) / ours if of_torch else None
            result[f"of {windows[0]} x {windows[0]}"] = ours / smallest if smallest else None
    return results


def lost(report: dict[str, Any]) -> list[str]:
    """Return what keeps measured times from being a report: the settings without lalref's time or the copy's."""
    return [
        f"{each['shape']}, {each['kernel_size']}: {name}"
        for each in report["times"]
        for name in sorted(NEEDED - each["milliseconds"].keys())
    ]


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None where nvidia-smi is not there to say it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.splitlines()[0].strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 where a result is wrong or missing, 3 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m lalref.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=REPORT, help="where to write (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small batch; writes no report")
    options = parser.parse_args(arguments)
    if reason := no_device():
        print(f"nothing is measured: {reason}", file=sys.stderr)
        return 3
    import cupy

    errors = accuracy()
    if max(errors.values()) > MOST_UNITS:
        print(f"wrong, so nothing is timed: errors of {errors} units, {MOST_UNITS} allowed", file=sys.stderr)
        return 1
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    report: dict[str, Any] = {
        "device": device["name"].decode(),
        "compute capability": f"{device['major']}.{device['minor']}",
        "driver": driver(),
        "CUDA that the driver knows": cupy.cuda.runtime.driverGetVersion(),
        "CUDA runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "without torch": no_torch(),
        "torch": getattr(sys.modules.get("torch"), "__version__", None),  # imported by `no_torch`
        "sources": sources(),
        "accuracy in error units": errors,
        "times": [],
    }
    partial = options.report.with_suffix(".partial.json")
    for shape in QUICK if options.quick else SHAPES:
        report["times"] += measure([shape], WINDOWS[:2] if options.quick else WINDOWS, ROUNDS)
        text = json.dumps(report, indent=1) + "\n"
        if not options.quick:  # after each shape: a later one may fail
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
    print(text)
    if without := lost(report):
        kept = "" if options.quick else f"; what was measured is in {partial}"
        print(f"no report, for these have no time: {'; '.join(without)}{kept}", file=sys.stderr)
        return 1
    if not options.quick:
        partial.replace(options.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
