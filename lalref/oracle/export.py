"""Golden cases as files for other languages and other projects' CI: one file a case, and an index of them.

The layout is described in docs/golden-files.md, and `SCHEMA` is its number. The same golden version gives the
same bytes, whenever and wherever it is written. Nothing is worked out here: inputs come from `cases`, answers
and stages from `golden`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle import golden
from lalref.oracle.case import Case
from lalref.oracle.cases import CASES
from lalref.oracle.command import json_array, json_value

SCHEMA = 1
FORMATS = ("npz", "json")


def arrays_of(case: Case) -> dict[str, npt.NDArray[Any]]:
    """Inputs, right answers in two parts each, and stages of a case, by the names that files have them."""
    right = golden.load()[case.name]
    inputs = {"logits": case.given_logits, "labels": case.labels}
    inputs["grad_output"] = np.asarray(case.grad_output, np.float64)
    if case.pixel_weight is not None:
        inputs["pixel_weight"] = case.pixel_weight
    (value, value_low), (grad, grad_low) = right.value, right.grad
    answers = {"value": value, "value_low": value_low, "grad": grad, "grad_low": grad_low}
    return {**inputs, **{k: np.asarray(v) for k, v in answers.items()}, **golden.load_stages()[case.name]}


def entry_of(case: Case) -> dict[str, Any]:
    """What the index says of a case, and a JSON file of its own repeats."""
    return {
        "name": case.name,
        "reason": case.reason,
        "core": case.core,
        "feature": case.feature,
        "by_convention": golden.load()[case.name].by_convention,
        "options": {k: json_value(v) for k, v in case.all_options.items()},
    }


def export(folder: Path, form: str) -> list[Path]:
    """Write every case into `folder` and index.json beside them.

    Parameters
    ----------
    folder : Path
        Made where it is not there. Files of these names in it are written anew, others left alone.
    form : {"npz", "json"}

    Returns
    -------
    list of Path
        What was written, the index last.

    Raises
    ------
    ValueError
        `form` is neither.
    OSError
        The folder can't be written to.
    """
    if form not in FORMATS:
        raise ValueError(f"form={form!r} is not known: it is one of {', '.join(FORMATS)}")
    folder.mkdir(parents=True, exist_ok=True)
    head = {"schema": SCHEMA, "version": golden.version()}
    entries, files = [], []
    for case in CASES:
        file, entry, arrays = folder / f"{case.name}.{form}", entry_of(case), arrays_of(case)
        if form == "npz":
            data = golden.archive(arrays)
        else:
            whole = {**head, **entry, "arrays": {k: json_array(v) for k, v in arrays.items()}}
            data = (json.dumps(whole) + "\n").encode()
        file.write_bytes(data)
        files.append(file)
        entries.append({**entry, "file": file.name, "sha256": hashlib.sha256(data).hexdigest()})
    index = {**head, "format": form, "cases": entries}
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [*files, folder / "index.json"]
