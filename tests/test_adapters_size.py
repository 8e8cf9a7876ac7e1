"""An adapter can be read in one sitting: 40 to 120 lines of code each, docstrings, comments and blanks apart."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import lalref.adapters

ROOMS = sorted(Path(lalref.adapters.__file__).parent.glob("[!_]*.py"))
EMPTY = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines_of_code(text):
    """How many lines have something on them that runs."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    said = [
        node.body[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]
    prose = {line for node in said for line in range(node.lineno, node.end_lineno + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for t in tokens if t.type not in EMPTY for line in range(t.start[0], t.end[0] + 1)}
    return len(code - prose)


def test_lines_are_counted():
    assert (
        lines_of_code('"""Said."""\n\nx = (\n    1,\n)  # one\n\n\ndef f():\n    """Said."""\n    return x\n')
        == 5
    )


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_an_adapter_has_120_lines_at_most(room):
    least = 1 if room.stem == "calls" else 40  # what they share is no adapter
    assert least <= lines_of_code(room.read_text(encoding="utf-8")) <= 120
