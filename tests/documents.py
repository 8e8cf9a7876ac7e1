"""Runs the blocks of a page of documentation, so that what a reader copies works and prints what it says.

Blocks of one page share a namespace and a folder, as for a reader who goes from top to bottom; of the pages that are
looked things up in, those of one section share a namespace, as for a reader who copies that section. An HTML comment in
the line before a block, which readers don't see, says what is special about it:

    <!-- file: my_loss.py -->     written to that file, not run
    <!-- needs: torch, jax -->    run where these can be imported; g++ and make are programs
    <!-- exit: 1 -->              the shell block ends with this status
    <!-- by ci -->                a command that .ci/run has as a step of its own
    <!-- not run: the reason -->  shown, never run
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PROGRAMS = {"g++", "make"}
OUTPUT = re.compile(r"print\(.*\)  # (.*)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, line in the page, and the comment before it as name and value.

    Sections are counted as headings of the second level begin them.
    """

    language: str
    text: str
    line: int
    said: dict[str, str]
    section: int


def blocks(page: Path) -> list[Block]:
    """The Python and shell blocks of a page."""
    found, said, section = [], {}, 0
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "heading_open" and token.tag == "h2":
            section += 1
        elif token.type == "html_block" and (comment := re.fullmatch(r"<!-- (.*?) -->\s*", token.content)):
            name, _, value = comment[1].partition(": ")
            said[name] = value
        elif token.type == "code_block":
            raise AssertionError(
                f"{page.name}:{token.map[0] + 1} is indented code, which nobody runs: make it a fence"
            )
        elif token.type == "fence":
            language = token.info.split()[0] if token.info.strip() else ""
            if language in ("python", "sh") or "file" in said:
                found.append(Block(language, token.content, token.map[0] + 1, said, section))
            said = {}
    return found


def lacking(block: Block) -> str:
    """What a block needs that is not here; empty if all is."""
    needs = [name for name in block.said.get("needs", "").split(", ") if name]
    here = (shutil.which if name in PROGRAMS else importlib.util.find_spec for name in needs)
    return ", ".join(name for name, found in zip(needs, here, strict=True) if not found(name))


def make_torchvision_importable() -> None:
    """Declare two operators that importing torchvision looks for.

    Its wheels on PyPI hold code for the CUDA build of torch. Beside the build for CPUs that code does not load, its
    operators are missing, and the import ends with "operator torchvision::nms does not exist". No page uses them.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision").declared = library  # which lives as long as they do


def run(page: Path, folder: Path, *, sections_alone: bool = False) -> list[str]:
    """Run a page's blocks in `folder`; return what was left out and why, and raise where one fails."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    left_out, section = [], 0
    for block in blocks(page):
        if sections_alone and block.section != section:
            namespace, section = {"__name__": "__main__"}, block.section
        where = f"{page.name}:{block.line}"
        if reason := block.said.get("not run"):
            left_out.append(f"{where}: {reason}")
        elif "by ci" in block.said:
            steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
            for command in (line.split("#")[0].strip() for line in block.text.splitlines()):
                assert f"step {command}\n" in steps, f"{where}: .ci/run has no step {command!r}"
        elif "file" in block.said:
            path = folder / block.said["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif missing := lacking(block):
            left_out.append(f"{where}: needs {missing}")
        elif block.language == "python":
            _python(block, page, namespace)
        else:
            _shell(block, where, folder)
    return left_out


def _python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    if "segmentation_models_pytorch" in block.said.get("needs", ""):
        make_torchvision_importable()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
    said = [m[1] for line in block.text.splitlines() if (m := OUTPUT.search(line))]
    if said:
        assert printed.getvalue().splitlines() == said, f"{page.name}:{block.line} prints something else"


def _shell(block: Block, where: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "LALREF": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    wanted = int(block.said.get("exit", 0))
    assert done.returncode == wanted, (
        f"{where} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
