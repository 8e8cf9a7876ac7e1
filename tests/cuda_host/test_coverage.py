"""How many of the kernels' lines the CPU runs reach, by gcov: 95 % is the least."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from lalref.engines import kernels

TESTS = Path(__file__).parents[1]
LEAST = 0.95


@pytest.mark.slow
def test_the_cases_reach_the_kernels_lines(tmp_path, record_property):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "GCOV_PREFIX": str(tmp_path),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cuda_host.sanitized", "coverage"]
    subprocess.run(command, env=environment, check=True)
    counts = defaultdict(dict)
    for data in tmp_path.rglob("kernels.gcda"):
        notes = Path("/", data.relative_to(tmp_path)).with_suffix(".gcno")
        data.with_suffix(".gcno").write_bytes(notes.read_bytes())
        gcov = ["gcov", "--json-format", "--stdout", data.name]
        report = json.loads(subprocess.check_output(gcov, cwd=data.parent, text=True))
        for file in report["files"]:
            for line in file["lines"]:  # once for each template instance
                lines = counts[Path(file["file"]).name]
                lines[line["line_number"]] = lines.get(line["line_number"], 0) + line["count"]
    for file in kernels.FILES:
        lines = counts[file.name]
        missed = sorted(number for number, count in lines.items() if count == 0)
        share = 1 - len(missed) / len(lines)
        record_property(file.name, f"{share:.1%} of {len(lines)} lines; not reached: {missed}")
        assert share >= LEAST, f"{file.name}: not reached: {missed}"
