"""Every notebook runs from a clean kernel, and is committed without outputs."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
SHOWS = {  # figures, and what is printed
    "quickstart": (3, ["output identical"] * 2),
    "inside_the_automaton": (11, ["    9     0       2          3  'bc'\n"]),
    "will_it_help_me": (3, ["own text", "with a pool", "a tree of 16", "max_draft=", "MiB"]),
    "cache_planning": (2, ["fits: True", "page    [3, 3, 0]", "entry   [10, 11, 0]"]),
}


def test_all_notebooks_are_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == SHOWS.keys()


@pytest.mark.filterwarnings("default")  # Jupyter's own
@pytest.mark.parametrize("name", SHOWS)
def test_runs(name):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures, expected = SHOWS[name]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
    printed = "".join(output.get("text", "") for output in outputs)
    for text in expected:
        assert printed.count(text) >= expected.count(text), text
