"""Programs in any language as subjects: what they are given, and how their failures are told."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lalref import oracle
from lalref.cli import main
from lalref.oracle import golden
from lalref.oracle.cases import BY_NAME
from lalref.oracle.command import Command, ProgramError
from lalref.oracle.judge import judge

PORT = Path(__file__).resolve().parent.parent / "examples" / "ports" / "cpp_port.cpp"
TAKES = (
    "kernel_size,sigma,stride,space,normalize,p,label_smoothing,ignore_index,class_weight,reduction,"
    "pixel_weight,grad_output"
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
PLAIN = BY_NAME["plain"]


@pytest.fixture
def program(tmp_path):
    """Write a program for this Python; return the command that runs it."""

    def write(text):
        (tmp_path / "program.py").write_text(text)
        return f"{sys.executable} -S {tmp_path}/program.py {{case}} {{out}}"

    return write


@pytest.fixture(scope="module")
def compile_cpp(tmp_path_factory):
    """Compile the port, perhaps with a mistake in it."""

    def build(wrong="", right=""):
        folder = tmp_path_factory.mktemp("cpp")
        text = PORT.read_text()
        assert wrong in text
        (folder / "port.cpp").write_text(text.replace(wrong, right) if wrong else text)
        flags = ["-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["g++", *flags, "-o", folder / "port", folder / "port.cpp"], check=True)
        return f"{folder / 'port'} {{case}} {{out}}"

    return build


@needs_compiler
def test_the_port_in_cpp_is_right(compile_cpp, tmp_path):
    file = tmp_path / "report.json"
    command = compile_cpp()
    result = CliRunner().invoke(main, ["verify", "--command", command, "--takes", TAKES, "--json", str(file)])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert report["framework"] == "command"
    assert len({case["name"] for case in report["cases"]}) >= 50
    assert max(case["grad_units"] for case in report["cases"]) <= 1
    large = [row for row in report["protocol"] if row["name"].startswith("an image")]
    assert {row["outcome"] for row in large} <= {"holds", "unsupported"}


@needs_compiler
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("target(p, c, alpha)) / D[p];", "target(p, c, alpha)) / D[0];"),
        ("std::max(std::labs(i - k), std::labs(j - l))", "std::hypot(i - k, j - l)"),
        ("B += omega[k];", "B += 1;"),
    ],
    ids=["another divisor", "Euclidean", "all pixels counted"],
)
def test_a_port_in_cpp_with_a_mistake_is_wrong(compile_cpp, wrong, right):
    subject = Command(compile_cpp(wrong, right), takes=TAKES.split(","))
    case = BY_NAME["scattered-void"]
    result, _ = judge(subject, case, "float64", "", golden.load()[case.name])
    assert result.outcome == "differs"
    assert result.units >= 30


def test_what_a_program_is_given(program, tmp_path):
    command = program(f"""
import shutil, sys
shutil.copytree(sys.argv[1], {str(tmp_path / "seen")!r})
raise SystemExit(3)
""")
    case = BY_NAME["weights-none-stride"]
    with pytest.raises(ProgramError):
        Command(command, takes=["stride", "sigma", "p", "reduction"])(case, "float32")
    seen = tmp_path / "seen"
    logits = np.load(seen / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, case.logits)
    np.testing.assert_array_equal(np.load(seen / "labels.npy"), case.labels)
    np.testing.assert_array_equal(np.load(seen / "grad_output.npy"), case.grad_output)
    options = json.loads((seen / "options.json").read_text())
    assert options == {"stride": 2, "sigma": 3.0, "p": 5.0, "reduction": "none"}
    arrays = json.loads((seen / "arrays.json").read_text())
    assert arrays["logits"]["shape"] == list(case.logits.shape)
    numbers = [float.fromhex(v) for v in arrays["logits"]["data"]]
    np.testing.assert_array_equal(np.reshape(numbers, case.logits.shape), case.logits)
    assert arrays["labels"]["data"] == case.labels.ravel().tolist()


def test_infinity_is_a_string_and_none_is_null(program, tmp_path):
    command = program(f"""
import shutil, sys
shutil.copy(sys.argv[1] + "/options.json", {str(tmp_path / "options.json")!r})
""")
    for name, option, value in [("infinity", "p", "inf"), ("flat-weights", "sigma", None)]:
        with pytest.raises(ProgramError):
            Command(command)(BY_NAME[name], "float64")
        assert json.loads((tmp_path / "options.json").read_text())[option] == value


WRITE = "import sys; out = sys.argv[2]; write = lambda name, data: open(out + '/' + name, 'wb').write(data)\n"
FAILURES = {
    "status": (
        "import sys; print('no such option', file=sys.stderr); sys.exit(3)",
        "exit status 3; .*no such opt",
    ),
    "silent": ("raise SystemExit(1)", "exit status 1; nothing on stderr"),
    "signal": ("import os; os.abort()", "signal SIGABRT"),
    "nothing": ("pass", "wrote no value.npy; it wrote nothing"),
    "other name": (WRITE + "write('loss.npy', b'')", "wrote no value.npy; it wrote loss.npy"),
    "malformed": (WRITE + "write('value.npy', b'1.5')", "wrote a value.npy that is no array of real numbers"),
    "empty": (WRITE + "write('value.npy', b'')", "wrote a value.npy that is no array of real numbers"),
}


@pytest.mark.parametrize("key", FAILURES)
def test_a_failure_is_told(program, key):
    text, message = FAILURES[key]
    with pytest.raises(ProgramError, match=message):
        Command(program(text))(PLAIN, "float32")


def test_a_gradient_of_another_shape_or_kind_is_told(tmp_path):
    for name, value in [("value", np.array(1.0)), ("grad", np.zeros(3)), ("complex", np.array(1j))]:
        np.save(tmp_path / f"{name}.npy", value)
    copy = "sh -c 'cp {0}/{1}.npy {{out}}/value.npy; cp {0}/grad.npy {{out}}; : {{case}}'"
    subject = Command(copy.format(tmp_path, "value"))
    result, _ = judge(subject, PLAIN, "float32", "", golden.load()["plain"])
    assert result.note == "gradient of shape (3,), expected (2, 3, 6, 7)"
    with pytest.raises(ProgramError, match="no array of real numbers"):
        Command(copy.format(tmp_path, "complex"))(PLAIN, "float32")


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path):
    mark = tmp_path / "child"
    began = time.perf_counter()
    command = f"sh -c '(sleep 2; touch {mark}) & sleep 60; : {{case}} {{out}}'"
    with pytest.raises(ProgramError, match=r"longer than the time limit of 0\.5 s"):
        Command(command, seconds=0.5)(PLAIN, "float32")
    assert time.perf_counter() - began < 30
    time.sleep(2.5)
    assert not mark.exists()


def test_a_program_that_ends_before_its_children_is_judged_and_they_are_ended(tmp_path):
    mark = tmp_path / "child"
    command = f"sh -c '(sleep 2; touch {mark}; sleep 60) & echo over >&2; exit 3; : {{case}} {{out}}'"
    with pytest.raises(ProgramError, match=r"exit status 3; its last words: over"):
        Command(command, seconds=30)(PLAIN, "float32")
    time.sleep(2.5)
    assert not mark.exists()


def test_a_program_runs_in_a_scratch_folder_that_goes_away(program, tmp_path, monkeypatch):
    command = program("import os, sys; open('left', 'w'); sys.exit(os.getcwd())")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProgramError) as error:
        Command(command.replace(str(tmp_path) + "/", "./"))(PLAIN, "float32")  # a path from here
    folder = str(error.value).rsplit(" ", 1)[1]
    assert "lalref-" in folder
    assert not os.path.exists(folder)
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--command", "./nothing {case} {out}"], "there is no program './nothing' here"),
        (["--command", "ls {case}"], "the command lacks {out}"),
        (["--command", "ls '{case} {out}"], "can't be split into words"),
        (["--command", "ls {case} {out}", "--takes", "sigmo"], "takes names sigmo, no option"),
        (
            ["--command", "ls {case} {out}", "--takes", "sigma", "--fixed", "sigma=2"],
            "takes sigma as an argument",
        ),
        (["--command", "ls {case} {out}", "--time-limit", "0"], "more than 0"),
        (["--command", "ls {case} {out}", "--dtype", "bfloat16"], "can't be put to ls"),
        (["--takes", "sigma"], "FILE.py:FUNCTION, or a program"),
        (
            [str(PORT.with_name("numpy_port.py")) + ":value_and_grad", "--takes", "p"],
            "--takes is for --command",
        ),
    ],
)
def test_a_command_not_understood_exits_2_and_says_why(arguments, message):
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", "").split())


def test_options_not_taken_are_counted_and_named():
    subject = Command("ls {case} {out}", fixed={"sigma": 2.0})
    assert "sigma" not in subject.takes
    assert "kernel_size" in subject.takes
    assert subject.lacks(BY_NAME["sigma-3"]) == ["sigma"]
    report = oracle.verify(Command("true {case} {out}", takes=["p"]), quick=True)
    assert report.verdict == "wrong"
    assert "wrote no value.npy" in report.results[0].note
    assert "count" in report.skipped["normalize"]
