"""Build and check the notebooks: NN_name.py (jupytext percent form) is the source, NN_name.ipynb what is read.

    python notebooks/build.py              run every notebook and write it with its outputs
    python notebooks/build.py 01_idea      only this one
    python notebooks/build.py --check      run every notebook and tell which .ipynb is stale

Two builds on one machine give the same bytes: cells have fixed ids, nothing of time, place or versions is
kept, and output on stderr (a warning) is an error. Machines differ in the last bit, so a check compares the
sources exactly, text word by word with numbers to one unit of their last printed digit, and of pictures only
that they are there; what a notebook derives is asserted in its cells, and the check runs those again.
A cell that prints "skipped: ..." lacks a library or a compiler here: it is named, and not compared.

A check fails, too, where a notebook takes longer than a minute, kernel, answers and all: that is promised for two
cores with nothing else at work.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import matplotlib.font_manager  # noqa: F401  makes matplotlib's list of fonts here, and not, aloud, in a notebook
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

HERE = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 60  # that a notebook may take
SECONDS_A_CELL = 300  # a hang ends; no notebook is near it
NUMBER = re.compile(r"[-+]?\d+(?:\.(\d+))?(?:e([-+]?\d+))?")


class Failed(Exception):
    """A notebook that did not run, or is stale."""


def read_source(source: Path) -> nbformat.NotebookNode:
    """The notebook without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i:02d}", nbformat.NotebookNode()
    return notebook


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells, then the answers' code, in a fresh kernel in this folder; keep what a reader sees."""
    written = len(notebook.cells)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in answers(notebook)]
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        coalesce_streams=True,  # else it depends on the clock where one piece of text ends
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise Failed(re.sub(r"\x1b\[[\d;]*m", "", str(error))) from None
    notebook.metadata = nbformat.from_dict(METADATA)
    del notebook.cells[written:]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise Failed(f"{cell.id} wrote to stderr:\n{output.text}")
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def answers(notebook: nbformat.NotebookNode) -> list[str]:
    """The Python in folded answers, which no cell runs."""
    folded = [c.source for c in notebook.cells if c.cell_type == "markdown" and "<details>" in c.source]
    return [code for text in folded for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def smaller(png: str) -> str:
    """The same picture in fewer bytes, and without the version of the program that drew it."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        bare = image.convert("RGB")
        bare.info.clear()
        bare.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def seen(cell: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """What a cell shows: (kind, text), a picture's bytes left out."""
    shown = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            shown.append(("text", output.text))
        for kind, data in sorted(output.get("data", {}).items()):  # as they are in a file
            shown.append((kind, "" if kind.startswith("image/") else "".join(data)))
    return shown


def skipped(cell: nbformat.NotebookNode) -> str:
    """The line that says why the cell was skipped; empty if it was not."""
    lines = (line for _, text in seen(cell) for line in text.splitlines())
    return next((line for line in lines if line.startswith("skipped: ")), "")


def alike(old: str, new: str) -> bool:
    """Whether two texts say the same: the same words, numbers with digits after the point to one unit of the last."""

    def unit(match: re.Match[str]) -> float:
        return 10.0 ** (int(match[2] or 0) - len(match[1])) if match[1] else 0.0

    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
        return False
    pairs = zip(NUMBER.finditer(old), NUMBER.finditer(new), strict=True)
    return all(abs(float(a[0]) - float(b[0])) <= 1.001 * max(unit(a), unit(b)) for a, b in pairs)


def check_source(source: Path) -> nbformat.NotebookNode:
    """Return the notebook that stands beside its source, if it has the same cells; raise Failed if not."""
    target = source.with_suffix(".ipynb")
    if not target.exists():
        raise Failed(f"there is no {target.name}: make notebooks")
    committed, now = nbformat.read(target, as_version=4), read_source(source)
    if [(c.id, c.cell_type, c.source) for c in committed.cells] != [
        (c.id, c.cell_type, c.source) for c in now.cells
    ]:
        raise Failed(f"{source.name} has changed since {target.name} was built: make notebooks")
    return committed


def check(source: Path) -> list[str]:
    """Run a notebook again and compare; return why cells were skipped."""
    committed = check_source(source)
    now = execute(read_source(source))
    reasons = []
    for old, new in zip(committed.cells, now.cells, strict=True):
        if reason := skipped(new):
            reasons.append(f"{new.id} {reason}")
            continue
        before, after = seen(old), seen(new)
        same = [kind for kind, _ in before] == [kind for kind, _ in after]
        if not same or not all(alike(a, b) for (_, a), (_, b) in zip(before, after, strict=True)):
            told = "\n".join(f"--- {what}\n{text}" for what, shown in (("committed", before), ("now", after))
                             for _, text in shown)  # fmt: skip
            raise Failed(f"{new.id} shows something else than {source.stem}.ipynb: make notebooks\n{told}")
    return reasons


def in_time(seconds: float) -> None:
    """Raise Failed if a notebook took longer than it may."""
    if seconds > SECONDS:
        raise Failed(
            f"it took {seconds:.0f} s, and a notebook may take {SECONDS} on two cores: make it do less, or, "
            "if something else is at work here, check again when that has ended"
        )


def build(source: Path) -> list[str]:
    """Run a notebook and write it; refuse where a cell had to be skipped."""
    notebook = execute(read_source(source))
    if reasons := [f"{cell.id} {reason}" for cell in notebook.cells if (reason := skipped(cell))]:
        raise Failed("not written, for it would be poorer than it is:\n" + "\n".join(reasons))
    nbformat.validate(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="notebooks to take, by the beginning of their names; else all"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, tell what is stale")
    options = parser.parse_args()
    sources = sorted(HERE.glob("[0-9][0-9]_*.py"))
    if options.names:
        if unknown := [n for n in options.names if not any(s.stem.startswith(n) for s in sources)]:
            parser.error(
                f"no notebook begins with {unknown[0]!r}; there are {', '.join(s.stem for s in sources)}"
            )
        sources = [s for s in sources if s.stem.startswith(tuple(options.names))]
    failures = 0
    with tempfile.TemporaryDirectory() as settings:
        os.environ |= {"IPYTHONDIR": settings, "PYTHONHASHSEED": "0"}  # nobody's own settings
        for source in sources:
            print(f"{source.stem}: running ...", flush=True)
            began = time.perf_counter()
            try:
                notes = check(source) if options.check else build(source)
                seconds = time.perf_counter() - began
                if options.check:
                    in_time(seconds)
            except Failed as error:
                failures += 1
                print(f"{source.stem}: FAILED\n{error}", flush=True)
                continue
            told = "is up to date" if options.check else "written"
            print("\n".join([f"{source.stem}: {told}, {seconds:.0f} s of {SECONDS}", *notes]), flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
