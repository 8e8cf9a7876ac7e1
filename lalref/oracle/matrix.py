"""The kill matrix: how many error units each mistake of the catalogue is off in each core case.

A mistake is killed by a case in which it is beyond the limit. Nothing is written here (`oracle_report`), and
no verdict on anybody's subject is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lalref.oracle import golden
from lalref.oracle.cases import CASES
from lalref.oracle.judge import judge
from lalref.oracle.subjects import Subject

CORE = tuple(case for case in CASES if case.core)


def units_by_case(function: Callable[..., Any], dtype: str) -> Mapping[str, float]:
    """Put every core case to a NumPy subject.

    Parameters
    ----------
    function : callable
        ``f(logits, labels, **options) -> (value, grad)``
    dtype : {"float32", "float64"}

    Returns
    -------
    mapping
        Name of the case -> the largest error of value and gradient in units; inf where there is no number to
        compare, or where it wrote to its input.
    """
    subject, right = Subject(function), golden.load()

    with np.errstate(all="ignore"):
        results = [judge(subject, case, dtype, "", right[case.name])[0] for case in CORE]
    return {result.name: math.inf if result.note else result.units for result in results}
