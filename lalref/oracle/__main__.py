"""``python -m lalref.oracle golden check|make``: hold the golden values against truth, or make them anew.

Judging is the command ``lalref verify``; only the oracle's own upkeep is here.
"""

import sys

from rich.progress import track

from lalref.oracle import golden
from lalref.oracle.cases import CASES


def main(arguments: list[str]) -> str | int:
    """Do what is asked; return the exit status, or what is wrong in words."""
    if arguments == ["golden", "make"]:
        golden.save({case.name: golden.make(case) for case in track(CASES, "golden values")})
        return 0
    if arguments == ["golden", "check"]:
        different = golden.check(progress=track)
        return f"these differ from truth: {', '.join(different)}" if different else 0
    return "usage: python -m lalref.oracle golden check|make"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
