"""Exported cases: they hold what the oracle holds, read back without it, and the page describes all of it."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lalref.cli import main
from lalref.oracle import golden
from lalref.oracle.cases import BY_NAME, CASES
from lalref.oracle.export import arrays_of, export

ROOT = Path(__file__).resolve().parent.parent
READER = ROOT / "examples" / "read_golden.cpp"


@pytest.fixture(scope="module", params=["npz", "json"])
def written(request, tmp_path_factory):
    """A folder with every case."""
    folder = tmp_path_factory.mktemp("cases") / request.param
    result = CliRunner().invoke(main, ["golden", "export", str(folder), "--format", request.param])
    assert result.exit_code == 0, result.output
    return folder


def number(data):
    """An entry of an array in JSON."""
    return float.fromhex(data) if isinstance(data, str) else data


def read(file):
    """The arrays of a case, by what docs/golden-files.md says."""
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return dict(arrays)
    arrays = json.loads(file.read_text())["arrays"]
    return {
        name: np.array([number(v) for v in a["data"]], a["dtype"]).reshape(a["shape"])
        for name, a in arrays.items()
    }


def test_every_case_reads_back_bit_for_bit(written):
    index = json.loads((written / "index.json").read_text())
    assert index["version"] == golden.version()
    assert [entry["name"] for entry in index["cases"]] == list(BY_NAME)
    for entry in index["cases"]:
        file = written / entry["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]
        found, expected = read(file), arrays_of(BY_NAME[entry["name"]])
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)


def test_an_export_is_the_same_bytes_again(written, tmp_path):
    for file in export(tmp_path, written.name):
        assert file.read_bytes() == (written / file.name).read_bytes()


def test_the_case_in_json_repeats_its_entry_of_the_index(tmp_path):
    export(tmp_path, "json")
    index = json.loads((tmp_path / "index.json").read_text())
    for entry in index["cases"]:
        case = json.loads((tmp_path / entry["file"]).read_text())
        assert {k: case[k] for k in entry if k not in ("file", "sha256")}.items() <= entry.items()
        assert (case["schema"], case["version"]) == (index["schema"], index["version"])


def test_the_page_describes_every_key_and_array_and_no_other(tmp_path):
    export(tmp_path, "json")
    index = json.loads((tmp_path / "index.json").read_text())
    names = {*index, *index["cases"][0]} | {name for case in CASES for name in arrays_of(case)}
    page = (ROOT / "docs" / "golden-files.md").read_text()
    first_cells = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    described = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert described | {"file", "sha256"} == names


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["golden", "export", str(tmp_path / "file" / "below")])
    assert result.exit_code == 1
    assert "Not a directory" in result.output


def test_a_format_that_is_not_known_is_told(tmp_path):
    with pytest.raises(ValueError, match="form='hdf5' is not known: it is one of npz, json"):
        export(tmp_path, "hdf5")


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_reader_in_cpp_reads_every_number_exactly(tmp_path):
    export(tmp_path, "json")
    program = tmp_path / "read_golden"
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", program, READER], check=True)
    assert len(READER.read_text().splitlines()) <= 40
    for name in ("plain", "pixel-weight", "uint8", "excluded-class", "empty-nan", "nan-ignored", "no-image"):
        for array, expected in arrays_of(BY_NAME[name]).items():
            said = subprocess.run(
                [program, tmp_path / f"{name}.json", array], check=True, capture_output=True, text=True
            ).stdout
            shape, *numbers = said.splitlines()
            assert tuple(map(int, shape.split())) == expected.shape
            np.testing.assert_array_equal([float.fromhex(v) for v in numbers], expected.ravel())
    refused = subprocess.run([program, tmp_path / "plain.json", "jacobian"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "has no array jacobian" in refused.stderr
