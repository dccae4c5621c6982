"""Every notebook runs from a clean kernel, and is committed without outputs."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"


@pytest.mark.filterwarnings("default")  # Jupyter's own
@pytest.mark.parametrize("name", ["quickstart"])
def test_runs(name):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("output identical") == 3
