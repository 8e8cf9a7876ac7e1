"""Change one sign, operand or comparison of the arithmetic at a time, and see whether the tests notice.

    python tests/mutation.py --sample 40 --seed 0      # a sample
    python tests/mutation.py --list                    # every change there is, by number
    python tests/mutation.py --only 17 203             # these

Not a test itself, for it takes minutes. Each change is made in a copy of the package and its tests; a change
that no test notices is printed in full, to be argued away (the result is the same) or to be given a test.
"""

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = (
    "lalref/engines/array.py",
    "lalref/engines/pooling.py",
    "lalref/engines/twofold.py",
    "lalref/minkowski.py",
)
TESTS = (  # the quickest to notice first; the other engines are not what is changed
    ["tests/test_array.py", "-k", "not numba and (truths or two_units or behind or adjoint)"],
    ["tests/test_tiny_losses.py"],
    [
        "tests/test_combine.py",
        "tests/test_promises_nan.py",
        "tests/test_promises_values.py",
        "-k",
        "not numba",
    ],
    [
        "tests/test_array.py",
        "tests/test_promises_arrays.py",
        "tests/test_promises_inputs.py",
        "-k",
        "not numba",
    ],
)
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[ast.expr]:
    """What may stand in the place of `node`."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)  # another sign
        yield node.left  # an operand less
        if isinstance(node.op, ast.Sub | ast.Div | ast.Pow):
            yield ast.BinOp(node.right, node.op, node.left)  # the operands exchanged
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
        yield node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)  # another operand


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Each expression, as its parent's field (and index there); annotations left out."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                if isinstance(child, ast.expr):
                    yield tree, name, i
                yield from places(child)


def mutants() -> Iterator[tuple[str, str, str]]:
    """File, what is changed, and the whole text with the change in it."""
    for file in FILES:
        source = (ROOT / file).read_text(encoding="utf-8")
        tree = ast.parse(source)
        for parent, name, i in places(tree):
            child = getattr(parent, name) if i is None else getattr(parent, name)[i]
            for new in changes(child):
                put(parent, name, i, copy.deepcopy(new))
                text = ast.unparse(ast.fix_missing_locations(tree))
                put(parent, name, i, child)
                yield file, f"{file}:{child.lineno}: {ast.unparse(child)}  ->  {ast.unparse(new)}", text


def put(parent: ast.AST, name: str, i: int | None, child: ast.AST) -> None:
    if i is None:
        setattr(parent, name, child)
    else:
        getattr(parent, name)[i] = child


def noticed(folder: Path) -> bool:
    """Whether a test fails on what is in `folder`."""
    for tests in TESTS:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if run.returncode not in (0, 1, 2):
            raise SystemExit(run.stdout + run.stderr)
        if run.returncode:
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="changes by number, as --list tells them")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    every = list(enumerate(mutants()))
    if options.list:
        print("\n".join(f"{number:4} {what}" for number, (_, what, _) in every))
        return
    if options.only:
        chosen = [every[number] for number in options.only]
    else:
        chosen = sorted(random.Random(options.seed).sample(every, options.sample))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("lalref", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if noticed(folder):
            raise SystemExit("the tests fail without any change")
        survivors = []
        for number, (file, what, text) in chosen:
            kept = (folder / file).read_text(encoding="utf-8")
            (folder / file).write_text(text, encoding="utf-8")
            caught = noticed(folder)
            (folder / file).write_text(kept, encoding="utf-8")
            print(f"{number:4} {'caught  ' if caught else 'SURVIVED'} {what}", flush=True)
            survivors += [] if caught else [what]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught, of {len(every)} changes there are")
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
