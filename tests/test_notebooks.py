"""The notebooks beside their sources: built, whole, and of no particular machine. `make notebooks-check` runs them."""

import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LARGEST = 1_500_000  # bytes of one notebook

each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells(source):
    """(kind, text) of the cells of a .py file: parts that begin with # %%, prose without its comment signs."""
    for part in re.split(r"^# %%", source.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        if head.strip() == "[markdown]":
            yield "markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)
        else:
            yield "code", text.strip()


def read(source):
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))


def outputs(source):
    return [output for cell in read(source)["cells"] for output in cell.get("outputs", [])]


def test_the_notebooks_are_numbered_without_a_gap():
    assert [int(source.stem[:2]) for source in SOURCES] == list(range(1, len(SOURCES) + 1))
    assert {source.stem for source in SOURCES} == {path.stem for path in FOLDER.glob("*.ipynb")}


@each_notebook
def test_a_notebook_has_the_cells_of_its_source(source):
    built = [(cell["cell_type"], "".join(cell["source"])) for cell in read(source)["cells"]]
    assert built == list(cells(source)), "the source has changed since it was built: make notebooks"


@each_notebook
def test_a_notebook_was_run_from_first_to_last_cell_and_shows_text_and_pictures(source):
    code = [cell for cell in read(source)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = outputs(source)
    assert all(output["output_type"] != "error" for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert any(output.get("name") == "stdout" for output in shown)


@each_notebook
def test_a_notebook_asserts_what_it_derives(source):
    asserts = [text for kind, text in cells(source) if kind == "code" and re.search(r"\bassert", text)]
    assert len(asserts) >= 5
    assert any("np.testing.assert_" in text for text in asserts)


@each_notebook
def test_a_notebook_ends_with_exercises_and_folded_answers(source):
    exercises, answers = (text for _, text in list(cells(source))[-2:])
    assert exercises.startswith("## Exercises")
    asked = re.findall(r"^(\d+)\. ", exercises, re.MULTILINE)
    assert len(asked) >= 3
    assert answers.startswith("<details>\n<summary>Answers</summary>\n\n")
    assert answers.endswith("\n\n</details>")
    assert re.findall(r"^\*\*(\d+)\.\*\*", answers, re.MULTILINE) == asked


@each_notebook
def test_a_notebook_names_no_machine_and_no_moment(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < LARGEST
    prose = json.dumps(
        [(cell["source"], [o.get("text") for o in cell.get("outputs", [])]) for cell in read(source)["cells"]]
    )
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|opt|var|work|Users)/", prose)
    assert not re.search(r"0x[0-9a-f]{6}", prose)
    assert set(read(source)["metadata"]) == {"kernelspec", "language_info"}
    assert read(source)["metadata"]["language_info"] == {"name": "python"}
    assert all("execution" not in cell["metadata"] for cell in read(source)["cells"])
    for output in outputs(source):
        if "image/png" in output.get("data", {}):
            png = base64.b64decode("".join(output["data"]["image/png"]))
            assert not {b"tEXt", b"tIME", b"iTXt"} & {png[i : i + 4] for i in chunks(png)}


def chunks(png):
    """Where the name of each chunk of a PNG begins."""
    at = 8
    while at < len(png):
        yield at + 4
        at += 12 + int.from_bytes(png[at : at + 4], "big")


@pytest.fixture(scope="module")
def build():
    pytest.importorskip("nbclient", reason="nbclient is not installed: make notebooks-check has it")
    pytest.importorskip("jupytext", reason="jupytext is not installed: make notebooks-check has it")
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("mean 0.385", "mean 0.386", True),
        ("mean 0.385", "mean 0.387", False),
        ("1.20e-07", "1.21e-07", True),
        ("1.20e-07", "1.20e-08", False),
        ("13 of 25", "14 of 25", False),
        ("right", "wrong", False),
    ],
)
def test_texts_are_alike_up_to_one_unit_of_the_last_digit(build, old, new, same):
    assert build.alike(old, new) is same


def written(folder, text):
    source = folder / "01_small.py"
    source.write_text(text, encoding="utf-8")
    return source


SMALL = """# %% [markdown]
# # Small

# %%
import matplotlib.pyplot as plt
x = 2
print(f'{x / 3:.3f}')
plt.plot([x, 3])
plt.show()
"""


@pytest.fixture
def built(build, tmp_path):
    source = written(tmp_path, SMALL)
    build.build(source)
    return source


def test_two_builds_give_the_same_bytes_and_a_check_finds_nothing(build, built):
    first = built.with_suffix(".ipynb").read_bytes()
    build.build(built)
    assert built.with_suffix(".ipynb").read_bytes() == first
    assert build.check(built) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SMALL.replace("x = 2", "x = 2.0"), "has changed"),
        (SMALL.replace("# # Small", "# # Smaller"), "has changed"),
    ],
)
def test_a_changed_source_is_found_before_anything_runs(build, built, text, told):
    with pytest.raises(build.Failed, match=told):
        build.check(written(built.parent, text))


def test_an_output_that_no_longer_comes_out_is_found(build, built):
    target = built.with_suffix(".ipynb")
    target.write_text(target.read_text(encoding="utf-8").replace("0.667", "0.656"), encoding="utf-8")
    with pytest.raises(build.Failed, match="shows something else"):
        build.check(built)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("assert x == 3", "AssertionError"),
        ("import sys; print('careful', file=sys.stderr)", "wrote to stderr"),
        ("print('skipped: there is no g++')", "there is no g"),
    ],
)
def test_what_did_not_run_well_is_not_written(build, built, cell, told):
    before = built.with_suffix(".ipynb").read_bytes()
    with pytest.raises(build.Failed, match=told):
        build.build(written(built.parent, f"{SMALL}\n# %%\n{cell}\n"))
    assert built.with_suffix(".ipynb").read_bytes() == before


def test_a_check_fails_where_a_notebook_takes_too_long(build, built, monkeypatch, capsys):
    monkeypatch.setattr(build, "HERE", built.parent)
    monkeypatch.setattr(build.sys, "argv", ["build.py", "--check"])
    for name in ("IPYTHONDIR", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "")  # main sets it: to be put back
    with pytest.raises(SystemExit, match="0"):
        build.main()
    assert re.search(r"01_small: is up to date, \d+ s of 60$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setattr(build, "SECONDS", 0.01)
    with pytest.raises(SystemExit, match="1"):
        build.main()
    assert re.search(
        r"01_small: FAILED\nit took \d+ s, and a notebook may take 0.01", capsys.readouterr().out
    )


def test_the_code_in_answers_is_run(build, built):
    answer = "\n# %% [markdown]\n# <details>\n#\n# ```python\n# assert x == 3\n# ```\n#\n# </details>\n"
    with pytest.raises(build.Failed, match="AssertionError"):
        build.build(written(built.parent, SMALL + answer))
