"""Every notebook's script runs from top to bottom in its fast mode, and its built copy is up to date and small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))


# Half a minute to two, though in small; the others take 20 seconds.
SLOW = {"03_transfer_maze", "04_vgan", "05_compress", "06_bits_that_matter"}
RUN = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else pytest.mark.long)
    for path in SCRIPTS
]


@pytest.mark.parametrize("script", RUN)
def test_notebook_runs_in_fast_mode(script, tmp_path):
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "VDBJAX_FAST": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(NOTEBOOKS.parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_built_notebook_matches_its_script(script):
    jupytext = pytest.importorskip("jupytext")
    built = script.with_suffix(".ipynb")
    assert built.stat().st_size < 1_000_000
    cells = json.loads(built.read_text())["cells"]
    assert ["".join(cell["source"]) for cell in cells] == [cell.source for cell in jupytext.read(script).cells]
    errors = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert not errors
