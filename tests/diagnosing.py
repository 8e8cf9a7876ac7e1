"""What tests of the diagnosis share: the answers of a subject to all core cases, and the names it is given."""

import numpy as np

from lalref.oracle import golden
from lalref.oracle.call import Answer
from lalref.oracle.cases import CASES
from lalref.oracle.diagnose import Observed, diagnose
from lalref.oracle.mistakes import Textbook

textbook = Textbook()


def observed(f, dtypes=("float32", "float64"), keep=lambda case: True):
    """All core cases, as `verify` has them."""
    found = []
    for case in CASES:
        for dtype in dtypes if case.core and keep(case) else ():
            x, y = case.given_logits.astype(dtype), case.labels.copy()
            with np.errstate(all="ignore"):
                try:
                    value, grad = f(x, y, **case.arguments)
                except ValueError:
                    continue
            before = {"logits": (x, case.given_logits), "labels": (y, case.labels)}
            changed = tuple(k for k, (a, b) in before.items() if not np.array_equal(a, b.astype(a.dtype)))
            right = golden.load()[case.name]
            if np.shape(value) == right.value.shape[1:]:
                answer = Answer(np.asarray(value, float), np.asarray(grad, float), changed)
                found.append(Observed(case, dtype, answer, right))
    return found


def asker(f):
    """The subject itself, for what it has not been asked yet."""

    def ask(case, dtype):
        with np.errstate(all="ignore"):
            value, grad = f(case.logits.astype(dtype), case.labels, **case.arguments)
        return Answer(np.asarray(value, float), np.asarray(grad, float))

    return ask


def names(f, **rest):
    return [finding.mistake for finding in diagnose(observed(f, **rest), asker(f)).findings]
