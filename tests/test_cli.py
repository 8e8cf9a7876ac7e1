"""The command line: exit codes that a script can rely on, and answers that a newcomer understands."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner

import lalref
from lalref.cli import main
from lalref.doctor import PACKAGES, compilation, engines

ROOT = Path(__file__).resolve().parent.parent
PORTS = ROOT / "examples" / "ports"


def invoke(*arguments):
    """Run `lalref` with the arguments, within this process."""
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="lalref")


@pytest.fixture
def write(tmp_path):
    """Write a file of code; return its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_version_and_help_without_installing_the_script():
    for argument, said in [("--version", lalref.__version__), ("--help", "verify")]:
        done = subprocess.run(
            [sys.executable, "-m", "lalref", argument], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_a_file_named_after_a_module_does_not_hide_it(write):
    """As a torch.py of one's own, next to a loss that imports torch."""
    code = "import wave\n\nwave.open\nfrom lalref.oracle.mistakes import Textbook\n\nloss = Textbook()\n"
    port = write(code, "wave.py")
    done = subprocess.run(
        [sys.executable, "-m", "lalref", "verify", f"{port}:loss", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("sigma=1.5,kernel_size=3", {"sigma": 1.5, "kernel_size": 3}),
        ("sigma=None, p=inf", {"sigma": None, "p": math.inf}),
        ("space=probabilities", {"space": "probabilities"}),
        ("class_weight=(1, 0.5),kernel_size=[3,5]", {"class_weight": (1, 0.5), "kernel_size": [3, 5]}),
    ],
)
def test_fixed_reads_values_as_written(text, expected):
    from lalref.cli import parse_fixed

    assert parse_fixed(None, None, text) == expected


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["nothing"], "FILE.py:FUNCTION"),
        (["nowhere.py:loss"], "no file 'nowhere.py'"),
        ([f"{PORTS}/numpy_port.py:los"], "it has value_and_grad"),
        ([f"{PORTS}/numpy_port.py:value_and_grad", "--framework", "numpi"], "'numpy'"),
        ([f"{PORTS}/numpy_port.py:value_and_grad", "--dtype", "int8"], "'float32'"),
        ([f"{PORTS}/numpy_port.py:value_and_grad", "--fixed", "sigma"], "sigma=1.5"),
        ([f"{PORTS}/numpy_port.py:value_and_grad", "--fixed", "sigmo=1"], "sigma"),
    ],
)
def test_a_command_not_understood_exits_2_and_names_the_remedy(arguments, remedy):
    result = invoke("verify", *arguments)
    assert result.exit_code == 2, result.output
    assert remedy in result.output


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_framework", "No module named 'no_such_framework'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),  # a script that leaves by itself must not pass for right
    ],
)
def test_a_file_that_cannot_be_imported_exits_2_and_says_why(write, code, said):
    result = invoke("verify", f"{write(code)}:f")
    assert result.exit_code == 2, result.output
    assert said in result.output


@pytest.mark.parametrize(
    ("port", "verdict", "code"),
    [("numpy_port.py:value_and_grad", "right", 0), ("broken_port.py:value_and_grad", "wrong", 1)],
)
def test_the_exit_code_is_the_verdict_and_the_report_can_be_had_for_machines(port, verdict, code, tmp_path):
    file, xml = tmp_path / "report.json", tmp_path / "report.xml"
    result = invoke("verify", PORTS / port, "--quick", "--json", file, "--junit", xml)
    assert result.exit_code == code, result.output
    assert json.loads(file.read_text())["verdict"] == verdict
    assert (ElementTree.parse(xml).getroot().get("failures") == "0") == (verdict == "right")
    assert f": {verdict}" in result.stdout


def test_the_broken_port_is_told_where_and_by_how_much_it_is_off():
    result = invoke("verify", PORTS / "broken_port.py:value_and_grad")
    assert "Worst: gradient at (" in result.stdout
    assert "expected" in result.stdout


def test_too_little_to_judge_by_is_inconclusive(write):
    """No case has 99 classes, so none can be put to a loss with 99 class weights built in."""
    path = write("def f(logits, labels): raise NotImplementedError")
    result = invoke("verify", f"{path}:f", "--fixed", f"class_weight={(2.0,) * 99}")
    assert result.exit_code == 3, result.output
    assert ": inconclusive" in result.stdout


def test_strict_lets_extended_features_decide():
    assert invoke("verify", PORTS / "numpy_port.py:value_and_grad", "--strict").exit_code == 1


@pytest.mark.parametrize("leave", ["raise SystemExit(0)", "raise KeyboardInterrupt"])
def test_leaving_halfway_is_no_verdict(write, leave):
    result = invoke("verify", f"{write('def f(logits, labels): ' + leave)}:f")
    assert result.exit_code == 3, result.output
    assert "No verdict" in result.output


def test_a_report_that_cannot_be_written_is_said_before_any_work(tmp_path):
    port = PORTS / "numpy_port.py:value_and_grad"
    result = invoke("verify", port, "--json", tmp_path / "no" / "such" / "folder.json")
    assert result.exit_code == 2, result.output


def test_a_framework_that_is_not_there_is_told_with_how_to_install_it(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    done = invoke("verify", f"{write('import torch')}:loss", "--framework", "torch")
    assert done.exit_code == 2
    assert "pip install torch" in done.output


def test_a_subject_may_import_its_neighbours(write):
    write("def f(logits, labels): raise NotImplementedError", "neighbour.py")
    result = invoke("verify", f"{write('from neighbour import f')}:f", "--quick")
    assert result.exit_code != 2, result.output


def test_doctor_shows_every_package_and_engine_with_its_reason():
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    for name in [*PACKAGES, "python", "definition", "array", "numba", "cuda", "processors"]:
        assert name in result.output


def test_help_cuts_no_sentence_short_and_names_the_exit_codes():
    text = invoke("--help").stdout
    assert "..." not in text.split("Commands:")[1]
    for code in (
        "0 all is well",
        "1 something is wrong",
        "2 the command was not understood",
        "3 inconclusive",
    ):
        assert code in " ".join(text.split())
    for command in main.commands:
        assert f"\n  {command} " in text


def test_doctor_says_what_compiling_took_or_that_it_was_done_before(monkeypatch):
    paths = {"float32", "float32 probabilities", "float64", "float64 probabilities"}
    assert set(compilation()) == paths  # from here on it is done
    before = r"compiled before( in [\d.]+ s of processor time)?, ready in [\d.]+ s"
    assert all(re.fullmatch(before, cost) for cost in compilation().values())
    from numba.core import event

    def compiling(*arguments, **options):
        with event.trigger_event("numba:compile"):
            pass

    monkeypatch.setattr(lalref, "lal_value_and_grad", compiling)
    assert all(cost.startswith("compiled in 0.0 s") for cost in compilation().values())
    assert "compiled in 0.0 s, once for this machine" in invoke("doctor").stdout


def test_doctor_says_what_the_cuda_engine_lacks(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (cuda,) = [engine for engine in engines() if engine.name == "cuda"]
    assert not cuda.available
    assert "needs CuPy: in a clone of lalref, pip install -c constraints.txt -e '.[cuda13]'" in cuda.reason


def test_false_alarms_are_counted_by_one_command(monkeypatch):
    result = invoke("oracle", "false-alarms", "--runs", 20)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("0 false alarms in 20 runs of 20 honest implementations.")
    assert invoke("oracle", "false-alarms", "--runs", 10**9).exit_code == 2
    monkeypatch.setattr("lalref.oracle.judge.LIMIT", 1e-6)  # now honest rounding is an offence
    result = invoke("oracle", "false-alarms", "--runs", 20)
    assert result.exit_code == 1
    assert "ALARM" in result.stdout


def test_the_number_of_honest_implementations_is_as_help_says():
    from lalref.oracle.honest import variants

    assert f"one of {len(list(variants()))} ways" in " ".join(
        invoke("oracle", "false-alarms", "--help").stdout.split()
    )
