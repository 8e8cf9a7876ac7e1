"""Measures what docs/oracle-figures.md says of right implementations, and of the time that a verdict takes.

    PYTHONPATH=.:tests python -m oracle_figures units    how far off honest implementations are
    PYTHONPATH=.:tests python -m oracle_figures cost     quick and full runs of a port in each framework
    PYTHONPATH=.:tests python -m oracle_figures files    size of the golden values, of an export and of the wheel

What is not installed is left out. It ends with an error where a promise is not kept; of a quick run that takes over
2 s, which a busy machine alone can bring about, it only tells. Times are of this machine, and of whatever else it does.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[1]
LALREF = (sys.executable, "-c", "from lalref.cli import main; main()")
OF_LALREF = "from lalref import lal_value_and_grad as loss\n"
LOADING = """
import numpy as np
from lalref import lal_value_and_grad
for dtype in ("float16", "float32", "float64"):
    lal_value_and_grad(np.zeros((1, 2, 3, 3), dtype), np.zeros((1, 3, 3), np.int64))
"""  # numba reads its machine code at the first call; 0.1 s of this is lalref's own import
CPP_TAKES = "kernel_size,sigma,stride,space,normalize,p,label_smoothing,ignore_index,class_weight,reduction"
CPP_TAKES += ",pixel_weight,grad_output"


def units() -> list[str]:
    """Print the largest error of each right implementation, in units; return what is beyond 1, for engines 2."""
    import test_units

    import lalref
    from lalref.oracle import golden
    from lalref.oracle.cases import CASES
    from lalref.oracle.judge import in_units
    from lalref.oracle.units import error_unit

    beyond = []
    for dtype in ("float32", "float64"):
        forms = [(f.__name__, f()) for f in test_units.HONEST]
        worst = {
            name: max(test_units.worst_units(form, case, dtype) for case in test_units.TEXTBOOK_CAN)
            for name, form in forms
        }
        most = max(worst, key=worst.__getitem__)
        print(
            f"textbook, {dtype}: {worst['Textbook']:.2f} units; {len(worst) - 1} other ways to compute it: ",
            end="",
        )
        print(f"at most {worst[most]:.2f} ({most})")
        beyond += [f"{name}, {dtype}: {off:.2f} units" for name, off in worst.items() if not off <= 1]
    for engine in ("array", "numba"):
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            found = {False: 0.0, True: 0.0}
            for case in CASES:
                if engine == "numba" and case.labels.ndim > 4:
                    continue  # three spatial axes at most
                x = case.given_logits.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
                value, grad = lalref.lal_value_and_grad(x, case.labels, engine=engine, **case.arguments)
                right = golden.load()[case.name]
                unit = error_unit(case, dtype, right.value[0], right.grad[0])
                off = in_units(np.asarray(value, float), right.value, unit.value).max(initial=0)
                off = max(off, in_units(grad.astype(float), right.grad, unit.grad).max(initial=0))
                found[case.accurate] = max(found[case.accurate], float(off))
            print(f"engine {engine}, {dtype}: {found[False]:.2f} units, tiny losses {found[True]:.2f}")
            if not max(found.values()) <= 2:
                beyond.append(f"engine {engine}, {dtype}: {max(found.values()):.2f} units")
    return beyond


def cost() -> list[str]:
    """Print what quick and full runs of a port in each framework take; return which full ones take over a minute."""
    slow = []
    folder = Path(tempfile.mkdtemp())
    (folder / "numba_port.py").write_text(OF_LALREF)
    ports = ROOT / "examples/ports"
    subjects = {
        "NumPy": ("numpy", [f"{ports}/numpy_port.py:value_and_grad"]),
        "NumPy, lalref's numba engine": ("numba", [f"{folder}/numba_port.py:loss"]),
        "PyTorch": ("torch", [f"{ports}/torch_port.py:loss", "--framework", "torch"]),
        "JAX": ("jax", [f"{ports}/jax_port.py:loss", "--framework", "jax"]),
        "TensorFlow": (
            "tensorflow",
            [f"{ROOT}/tests/frameworks/tensorflow_port.py:loss", "--framework", "tensorflow"],
        ),
    }
    if shutil.which("g++"):
        program = folder / "cpp_port"
        subprocess.run(["g++", "-O2", "-std=c++17", "-o", program, ports / "cpp_port.cpp"], check=True)
        subjects["C++"] = ("", ["--command", f"{program} {{case}} {{out}}", "--takes", CPP_TAKES])
    for name, (module, arguments) in subjects.items():
        if module and importlib.util.find_spec(module) is None:
            print(f"{name}: not installed")
            continue
        runs = {"quick": ["--quick"], "full": []}
        importing = [sys.executable, "-c", LOADING if module == "numba" else f"import {module}"]
        own = min(timed(importing) for _ in range(3)) if module else 0.0
        told = []
        for run, option in runs.items():
            file = folder / "report.json"
            command = [*LALREF, "verify", *arguments, *option, "--json", str(file)]
            # of a quick run the best of three: the first compiles what is compiled once for all
            seconds = max(min(timed(command) for _ in range(3 if run == "quick" else 1)) - own, 0.0)
            report = json.loads(file.read_text())
            asked = len({case["name"] for case in report["cases"]})
            over = ", MORE THAN THE 2 s ASKED" if run == "quick" and seconds > 2 else ""
            told.append(f"{run} {seconds:.1f} s{over} ({asked} core cases, {report['verdict']})")
            if run == "full" and seconds > 60:
                slow.append(f"{name}: a full run took {seconds:.0f} s")
        print(f"{name}: {', '.join(told)}; loading it takes {own:.1f} s, not in these", flush=True)
    shutil.rmtree(folder)
    return slow


def timed(command: list[str]) -> float:
    """Seconds that a command takes, which has to end well."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - began


def files() -> list[str]:
    """Print how large the golden values are, an export of them, and a wheel; return what exceeds its limit."""
    from lalref.oracle import golden
    from lalref.oracle.export import export

    stored = {file.name: file.stat().st_size for file in sorted(golden.FOLDER.iterdir())}
    print(f"golden values, version {golden.version()}: {sum(stored.values()):,} bytes, {stored}")
    with tempfile.TemporaryDirectory() as folder:
        for form in ("npz", "json"):
            written = export(Path(folder, form), form)
            print(
                f"export --format {form}: {len(written)} files, {sum(f.stat().st_size for f in written):,} bytes"
            )
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("lalref-*.whl")
        with zipfile.ZipFile(wheel) as inside:
            packed = sum(i.compress_size for i in inside.infolist() if "oracle/data" in i.filename)
        size = wheel.stat().st_size
        print(f"wheel: {size:,} bytes, {packed:,} of them golden values")
    lines = len((ROOT / "examples/read_golden.cpp").read_text().splitlines())
    print(f"C++ reader: {lines} lines")
    limits = (("bytes of golden values", sum(stored.values()), 10**6), ("bytes of the wheel", size, 10**6))
    return [
        f"{number:,} {what}, over {most:,}"
        for what, number, most in (*limits, ("lines of the C++ reader", lines, 40))
        if number > most
    ]


if __name__ == "__main__":
    measures = {each.__name__: each for each in (units, cost, files)}
    if not set(sys.argv[1:]) <= set(measures):
        sys.exit(f"{sys.argv[1:]}: one of {', '.join(measures)}")
    beyond = [each for name in sys.argv[1:] or measures for each in measures[name]()]
    if beyond:
        sys.exit("not as promised:\n" + "\n".join(beyond))
