"""Golden values: the right answers to the cases, made by truth, stored, loaded, and made again to compare.

Each number is kept as two float64 whose sum is within 2^-104 of it, relatively, or where it is so small that
the second one underflows, as near as float64 comes. What the windows go through on the way (group sizes,
divisors, merged vectors, losses) is kept in float64, for bisecting. The files golden.npz and stages.npz are
written without compression or dates, so that the same truth gives the same bytes; golden.json beside them
holds schema, version, each file's sha256 and, case by case, that of the inputs: a case that was changed
without new golden values is noticed when it is loaded. Other bytes get a higher version.

    lalref golden check     # make all again and compare
    lalref golden make      # write the files anew

Only `make`, `make_stages` and `check` need truth; loading needs NumPy alone. No tolerance of a verdict may
come in.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle.case import Case
from lalref.oracle.cases import CASES
from lalref.oracle.inputs import FloatArray

SCHEMA = 2  # of the files' layout
FILES = ("golden.npz", "stages.npz")
STAGES = ("group_size", "divisor", "merged", "window_loss")
FOLDER = Path(__file__).with_name("data")
SAME = 2.0**-100  # two makings of one number agree to this, relatively
SAME_STAGE = 2.0**-52  # and of a float64


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """The right answer to one case: each array with a leading axis of two, high and low part.

    Attributes
    ----------
    value : float64 array (2,) or, for reduction="none", (2, N, *grid)
    grad : float64 array (2, *shape of the logits)
    by_convention : bool
        True where windows tie for the maximum at p = inf: how they share the gradient, equation (9), is
        a convention and not a derivative.
    """

    value: FloatArray
    grad: FloatArray
    by_convention: bool = False


def make(case: Case) -> Golden:
    """Work out the right answer to `case` by truth (needs python-flint)."""
    return proven(case)[0]


def proven(case: Case) -> tuple[Golden, float]:
    """The right answer to `case`, and how many bits of each of its numbers are proven at least.

    Of a ball that holds 0, a true zero or terms that cancel, they are counted from the largest entry beside it.
    """
    from lalref import truth

    found = truth.value_and_grad(case.logits, case.labels, **case.arguments)
    balls = [np.ravel(np.asarray(each, dtype=object)) for each in (found.value, found.grad)]
    value, _ = truth.doubles(found.value)
    grad, _ = truth.doubles(found.grad)
    return Golden(value, grad, bool(found.tied)), min(map(_bits, balls))


def _bits(balls: npt.NDArray[Any]) -> float:
    """-log2 of the largest radius, each relative to its number."""
    finite = [ball for ball in balls if ball.is_finite() and not ball.is_exact()]
    largest = max((ball.abs_upper() for ball in balls if ball.is_finite()), default=None)
    bits = math.inf
    for ball in finite:
        size = largest if ball.contains(0) else ball.abs_lower()
        if size is not None and size > 0:  # where all that is there holds 0 there is nothing to compare with
            bits = min(bits, float((size / ball.rad()).log()) / math.log(2))
    return bits


def make_stages(case: Case) -> dict[str, npt.NDArray[Any]]:
    """Work out what the windows of `case` go through (needs python-flint): arrays by the names in STAGES.

    On the stride grid, 0 where a window is not valid: group_size int32, divisor and window_loss float64
    (N, *grid), and merged: z of equation (4), (N, C, *grid), or in probability space the merged probability
    of equation (6), (N, *grid).
    """
    from lalref import truth

    options = {k: v for k, v in case.arguments.items() if k != "grad_output"}
    found = truth.stages(case.logits, case.labels, **options)
    numbers = (truth.doubles(balls, 1)[0][0] for balls in (found.D, found.merged, found.ell))
    return dict(zip(STAGES, (found.group_size.astype(np.int32), *numbers), strict=True))


def index(folder: Path = FOLDER) -> dict[str, Any]:
    """What golden.json says: schema, version, sha256 of the files, and the cases."""
    found: dict[str, Any] = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    if found["schema"] != SCHEMA:
        raise ValueError(f"golden.json is of schema {found['schema']}, this lalref reads schema {SCHEMA}")
    return found


def version(folder: Path = FOLDER) -> int:
    """The version of the golden values: another number for other bytes, and always a higher one."""
    return int(index(folder)["version"])


def _arrays(folder: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    data = (folder / name).read_bytes()
    said = index(folder)["sha256"][name]
    if (found := hashlib.sha256(data).hexdigest()) != said:
        raise ValueError(f"{name} has sha256 {found}, golden.json says {said}: they do not belong together")
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


@functools.cache
def load_stages(folder: Path = FOLDER) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Read what `make_stages` has made, by the name of the case."""
    arrays = _arrays(folder, "stages.npz")
    return {case.name: {part: arrays[f"{case.name}.{part}"] for part in STAGES} for case in CASES}


@functools.cache
def load(folder: Path = FOLDER) -> dict[str, Golden]:
    """Read every golden value of `folder`.

    Raises
    ------
    ValueError
        The files do not belong together, are of another schema, or do not match the table of cases.
    """
    cases, arrays = index(folder)["cases"], _arrays(folder, "golden.npz")
    stale = [case.name for case in CASES if cases.get(case.name, {}).get("inputs") != digest(case)]
    if stale:
        raise ValueError(f"no golden values for {', '.join(stale)} as they are now: make them again")
    return {
        name: Golden(arrays[f"{name}.value"], arrays[f"{name}.grad"], entry["by_convention"])
        for name, entry in cases.items()
    }


def save(
    answers: dict[str, Golden], stages: dict[str, dict[str, npt.NDArray[Any]]], folder: Path = FOLDER
) -> int:
    """Write golden.npz, stages.npz and golden.json, and return the version.

    The same answers give the same bytes, and keep the version of the files that are there; others get the
    next higher one.
    """
    found = {
        "golden.npz": archive({
            f"{name}.{part}": getattr(golden, part) for name, golden in answers.items() for part in ("value", "grad")
        }),
        "stages.npz": archive({f"{name}.{part}": a for name, own in stages.items() for part, a in own.items()}),
    }  # fmt: skip
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    cases = {
        case.name: {"inputs": digest(case), "by_convention": answers[case.name].by_convention}
        for case in CASES
    }
    number = 1
    if (folder / "golden.json").exists():
        before = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        changed = (before["sha256"], before["cases"]) != (sha256, cases)
        number = before["version"] + changed
    for name, data in found.items():
        (folder / name).write_bytes(data)
    entry = {"schema": SCHEMA, "version": number, "sha256": sha256, "cases": cases}
    (folder / "golden.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return number


def archive(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """An uncompressed .npz of little-endian arrays: the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array.astype(array.dtype.newbyteorder("<")), version=(1, 0))
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, whenever it is written
            entry.create_system = 3  # the same on every system
            file.writestr(entry, member.getvalue())
    return buffer.getvalue()


def digest(case: Case) -> str:
    """Sha256 of everything that decides a case's answer: arrays, their shapes, options."""
    found = hashlib.sha256()
    arguments = {**case.arguments, "logits": case.given_logits, "labels": case.labels}
    for name, value in sorted(arguments.items()):
        if isinstance(value, np.ndarray):
            found.update(f"{name}:{value.dtype.name}{value.shape}".encode())
            found.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
        else:
            found.update(f"{name}={value!r};".encode())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Checked:
    """How many cases were made again, which differ from the stored ones, and how many bits are proven at least."""

    cases: int
    different: list[str]
    bits: float


def check(sample: int | None = None, progress: Callable[[Iterable[Case]], Iterable[Case]] = iter) -> Checked:
    """Make golden values again and compare them with the stored ones.

    Parameters
    ----------
    sample : int, optional
        Only every `sample`-th case.
    progress : callable, optional
        Wraps the cases on their way, as `rich.progress.track` does.

    Returns
    -------
    Checked
        ``different`` is empty when all is well.
    """
    stored, stages = load(), load_stages()
    different, bits, cases = [], math.inf, CASES[::sample]
    for case in progress(cases):
        made, least = proven(case)
        bits = min(bits, least)
        if not (_same(made, stored[case.name]) and _same_stages(make_stages(case), stages[case.name])):
            different.append(case.name)
    return Checked(len(cases), different, bits)


def _same(a: Golden, b: Golden) -> bool:
    def close(a: FloatArray, b: FloatArray) -> bool:
        if a.shape != b.shape or not np.array_equal(np.isnan(a[0]), np.isnan(b[0])):
            return False
        # the high parts nearly cancel, so their difference is exact
        apart = abs((a[0] - b[0]) + (a[1] - b[1]))
        return bool((np.nan_to_num(apart) <= SAME * abs(np.nan_to_num(b[0]))).all())

    return a.by_convention == b.by_convention and close(a.value, b.value) and close(a.grad, b.grad)


def _same_stages(a: Mapping[str, npt.NDArray[Any]], b: Mapping[str, npt.NDArray[Any]]) -> bool:
    def close(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
        with np.errstate(invalid="ignore"):  # -inf of an excluded class
            return a.shape == b.shape and bool(((a == b) | (abs(a - b) <= SAME_STAGE * abs(b))).all())

    return all(close(a[part], b[part]) for part in STAGES)
