"""The oracle: tells other people's implementations right or wrong.

`verify` is the way in. `cases` is the table of named inputs, `golden` their right answers, `units` how far
off an honest implementation may be, `subjects` how implementations are called, `report` what is told.
`gradcheck` stands apart: it checks the gradient of any function, whatever that computes.
Nothing of the engines may come in: what is judged here may be an engine.
"""

from lalref.oracle.command import Command
from lalref.oracle.gradcheck import GradientCheck, gradcheck
from lalref.oracle.report import Report
from lalref.oracle.result import Result
from lalref.oracle.subjects import UsageError
from lalref.oracle.verify import verify

__all__ = ["Command", "GradientCheck", "Report", "Result", "UsageError", "gradcheck", "verify"]
