"""Golden values: the right answers to the cases, made by truth, stored, loaded, and made again to compare.

Each number is kept as two float64 whose sum is within 2^-104 of it, relatively, or where it is so small that
the second one underflows, as near as float64 comes. The file golden.npz is written without compression or
dates, so that the same truth gives the same bytes; golden.json beside it holds schema, version, the file's
sha256 and, case by case, that of the inputs: a case that was changed without new golden values is noticed
when it is loaded.

    python -m lalref.oracle golden check     # make all again and compare
    python -m lalref.oracle golden make      # write the files anew

Only `make` and `check` need truth; loading needs NumPy alone. No tolerance of a verdict may come in.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lalref.oracle.case import Case
from lalref.oracle.cases import CASES
from lalref.oracle.inputs import FloatArray

SCHEMA = 1  # of the files' layout
VERSION = 1  # of the set of cases; only ever grows
FOLDER = Path(__file__).with_name("data")
SAME = 2.0**-100  # two makings of one number agree to this, relatively


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
    from lalref import truth

    found = truth.value_and_grad(case.logits, case.labels, **case.arguments)
    value, _ = truth.doubles(found.value)
    grad, _ = truth.doubles(found.grad)
    return Golden(value, grad, bool(found.tied))


@functools.cache
def load(folder: Path = FOLDER) -> dict[str, Golden]:
    """Read every golden value of `folder`.

    Raises
    ------
    ValueError
        The files do not belong together, are of another schema, or do not match the table of cases.
    """
    index = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    data = (folder / "golden.npz").read_bytes()
    if index["schema"] != SCHEMA:
        raise ValueError(f"golden.json is of schema {index['schema']}, this lalref reads schema {SCHEMA}")
    if (found := hashlib.sha256(data).hexdigest()) != index["sha256"]:
        raise ValueError(f"golden.npz has sha256 {found}, golden.json says {index['sha256']}: not a pair")
    stale = [case.name for case in CASES if index["cases"].get(case.name, {}).get("inputs") != digest(case)]
    if stale:
        raise ValueError(f"no golden values for {', '.join(stale)} as they are now: make them again")
    with np.load(io.BytesIO(data)) as arrays:
        return {
            name: Golden(arrays[f"{name}.value"], arrays[f"{name}.grad"], entry["by_convention"])
            for name, entry in index["cases"].items()
        }


def save(answers: dict[str, Golden], folder: Path = FOLDER) -> None:
    """Write golden.npz and golden.json: the same answers give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, golden in answers.items():
            for part in ("value", "grad"):
                member = io.BytesIO()
                np.lib.format.write_array(member, getattr(golden, part).astype("<f8"), version=(1, 0))
                entry = zipfile.ZipInfo(f"{name}.{part}.npy")  # dated 1980, whenever it is written
                entry.create_system = 3  # the same on every system
                file.writestr(entry, member.getvalue())
    cases = {
        case.name: {"inputs": digest(case), "by_convention": answers[case.name].by_convention}
        for case in CASES
    }
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    index = {"schema": SCHEMA, "version": VERSION, "sha256": sha256, "cases": cases}
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    (folder / "golden.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


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


def check(
    sample: int | None = None, progress: Callable[[Iterable[Case]], Iterable[Case]] = iter
) -> list[str]:
    """Make golden values again and compare them with the stored ones.

    Parameters
    ----------
    sample : int, optional
        Only every `sample`-th case.
    progress : callable, optional
        Wraps the cases on their way, as `rich.progress.track` does.

    Returns
    -------
    list of str
        Names of the cases that differ; empty when all is well.
    """
    stored = load()
    return [case.name for case in progress(CASES[::sample]) if not _same(make(case), stored[case.name])]


def _same(a: Golden, b: Golden) -> bool:
    def close(a: FloatArray, b: FloatArray) -> bool:
        if a.shape != b.shape or not np.array_equal(np.isnan(a[0]), np.isnan(b[0])):
            return False
        # the high parts nearly cancel, so their difference is exact
        apart = abs((a[0] - b[0]) + (a[1] - b[1]))
        return bool((np.nan_to_num(apart) <= SAME * abs(np.nan_to_num(b[0]))).all())

    return a.by_convention == b.by_convention and close(a.value, b.value) and close(a.grad, b.grad)
