"""The notebook runs, from an empty start, and shows a picture of each task and of a mask."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "unified_generation.ipynb"


@pytest.mark.slow
def test_the_notebook_shows_seven_tasks(monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebook]'")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/gif" in output.get("data", {})
    ]
    assert len(pictures) == 8
