"""A program in any language as a subject: it reads a folder of files and writes two.

The command is run once for each case and dtype, in a scratch folder, with the paths of two folders in the
place of ``{case}`` and ``{out}``. The case folder holds

- ``logits.npy``, ``labels.npy``, ``grad_output.npy`` (float64; 0-d, or a map) and, where the case has one,
  ``pixel_weight.npy``, all little-endian in C order;
- ``options.json``: every option that the program takes by name (p = inf is the string "inf", None is null);
- ``arrays.json``: the same arrays for languages without a reader of .npy, by name {dtype, shape, data}, the
  data flat in C order, floats in hexadecimal as strings; not for the large images.

It writes ``value.npy`` and ``grad.npy`` into the other folder and exits with status 0. Which options it
takes can't be read from a signature: all of them, but for those named in ``fixed``, unless ``takes`` says.

What the files of golden cases look like is `export`'s affair, and no right answer may come in.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle.call import Answer, Call, UsageError, as_float64
from lalref.oracle.case import ARGUMENTS
from lalref.oracle.subjects import Subject

SECONDS = 10.0  # that a program has for one case, unless said otherwise
IN_JSON = 50_000  # entries of logits beyond which there is no arrays.json
TAIL = 300  # characters of its last words that are told


class ProgramError(RuntimeError):
    """The program failed, or left something else than the two files."""


class Command(Subject):
    """A program to be judged.

    Parameters
    ----------
    command : str
        As in a shell, but no shell runs it; with ``{case}`` and ``{out}`` in it. Words that name a file or
        folder from here are made absolute, for the program runs elsewhere.
    fixed : mapping, optional
        Values of options that it has built in.
    takes : iterable of str, optional
        Names of the arguments that it reads; the default is all that are not fixed.
    seconds : float
        Time limit for each case.

    Raises
    ------
    UsageError
        There is no such program, a placeholder is missing, or an option is not known.

    Examples
    --------
    >>> import sys
    >>> from lalref.oracle import Command, verify
    >>> program = Command(f"{sys.executable} -c 'raise SystemExit(3)' {{case}} {{out}}")  # it does nothing but fail
    >>> verify(program, quick=True, dtype="float64").verdict
    'wrong'
    """

    def __init__(
        self,
        command: str,
        fixed: Mapping[str, Any] | None = None,
        takes: Iterable[str] | None = None,
        seconds: float = SECONDS,
    ) -> None:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"the command can't be split into words ({error}): {command}") from error
        if missing := [each for each in ("{case}", "{out}") if each not in command]:
            raise UsageError(
                f"the command lacks {' and '.join(missing)}, which stand for the folders it reads and writes: "
                "'./my_loss {case} {out}'"
            )
        if not shutil.which(words[0]):
            raise UsageError(f"there is no program {words[0]!r} here that can be run ({Path.cwd()})")
        if not seconds > 0:
            raise UsageError(f"the time limit is {seconds} seconds; it has to be more than 0")
        self.words = [str(Path(word).resolve()) if Path(word).exists() else word for word in words]
        self.name, self.framework, self.version = Path(words[0]).name, "command", ""
        self.fixed, self.seconds, self.original = dict(fixed or {}), seconds, command
        named = frozenset(ARGUMENTS if takes is None else takes)
        if unknown := sorted(named - set(ARGUMENTS)):
            raise UsageError(f"takes names {', '.join(unknown)}, no option: {', '.join(ARGUMENTS)}")
        self.takes = named - set(self.fixed) if takes is None else named
        self.function, self.layouts, self.memo, self.left = self._run, (), {}, {}
        self.dtypes = ("float16", "float32", "float64")  # .npy has no bfloat16
        self.check_fixed()

    def ask(self, call: Call) -> Answer:
        """Write the case, run the program, read its answer.

        Raises
        ------
        ProgramError
            It failed, took too long, or its files are missing or malformed.
        """
        with tempfile.TemporaryDirectory(prefix="lalref-") as scratch:
            case, out = Path(scratch, "case"), Path(scratch, "out")
            case.mkdir()
            out.mkdir()
            write_case(case, call)
            self._run(case, out)
            return Answer(_read(out / "value.npy"), _read(out / "grad.npy"))

    def _run(self, case: Path, out: Path) -> None:
        words = [word.replace("{case}", str(case)).replace("{out}", str(out)) for word in self.words]
        last_words = case.parent / "stderr"  # a file: a pipe stays open as long as any child of it lives
        with last_words.open("wb") as stderr:
            process = subprocess.Popen(
                words,
                cwd=case.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that its children can be ended with it
            )
        try:
            process.wait(timeout=self.seconds)
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"took longer than the time limit of {self.seconds:g} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # also of what it has left running
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            words_left = " ".join(last_words.read_text(errors="replace").split())
            said = f"its last words: {words_left[-TAIL:]}" if words_left else "nothing on stderr"
            raise ProgramError(f"ended with {_status(process.returncode)}; {said}")


def write_case(folder: Path, call: Call) -> None:
    """Write the files that a program reads."""
    grad_output = np.asarray(call.grad_output, np.float64)
    arrays = {**call.given(), "grad_output": grad_output}
    for name, array in arrays.items():
        np.save(
            folder / f"{name}.npy",
            np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape),
        )
    options = {k: v for k, v in call.options.items() if not isinstance(v, np.ndarray) and k != "pixel_weight"}
    (folder / "options.json").write_text(json.dumps({k: json_value(v) for k, v in options.items()}))
    if call.logits.size <= IN_JSON:
        (folder / "arrays.json").write_text(json.dumps({k: json_array(v) for k, v in arrays.items()}))


def json_value(value: Any) -> Any:
    """An option's value as JSON has it: inf as a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_array(array: npt.NDArray[Any]) -> dict[str, Any]:
    """An array as dtype, shape and flat data, floats exactly: in hexadecimal."""
    flat = array.ravel()
    data: list[Any] = (
        flat.tolist() if array.dtype.kind in "iu" else [float(v).hex() for v in flat.astype(float)]
    )
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _read(file: Path) -> npt.NDArray[np.float64]:
    try:
        found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive")
        return as_float64(found, file.stem)
    except FileNotFoundError:
        there = sorted(each.name for each in file.parent.iterdir())
        raise ProgramError(f"wrote no {file.name}; it wrote {', '.join(there) or 'nothing'}") from None
    except (ValueError, OSError, EOFError, UsageError) as error:
        raise ProgramError(f"wrote a {file.name} that is no array of real numbers: {error}") from error


def _status(returncode: int) -> str:
    if returncode > 0:
        return f"exit status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
