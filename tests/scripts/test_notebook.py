"""The notebooks run, from an empty start, and show a picture of each task."""

from pathlib import Path

import pytest

from vdt_jax.diffusion.masks import TASKS

FOLDER = Path(__file__).parents[2] / "notebooks"
# Replaces the settings of the training notebook.
SHRUNK = """
VIDEOS, CLIPS, RUN = "{folder}/my videos", "{folder}/clips", "{folder}/run"
SIZE, HOP, STEPS, SAMPLING_STEPS = 16, 16, 2, 2
OPTIONS = [f"--config.model.{{key}}={{value}}" for key, value in dict(hidden_size=16, depth=1, num_heads=2).items()]
OPTIONS += ["--config.batch_size=2", "--config.preview.every=0", "--config.validation.every=0"]
"""


def execute(notebook):
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebook]'")
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/gif" in output.get("data", {})]


def read(name, monkeypatch):
    """A notebook, whose kernel finds the package."""
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebook]'")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=":")
    return nbformat.read(FOLDER / name, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


@pytest.mark.slow
def test_the_notebook_shows_seven_tasks(monkeypatch):
    pictures = execute(read("unified_generation.ipynb", monkeypatch))
    assert len(pictures) == len(TASKS) + 1  # and a mask of one's own


@pytest.mark.slow
def test_the_training_notebook_trains_and_shows_seven_tasks(monkeypatch, tmp_path):
    notebook = read("train_on_your_videos.ipynb", monkeypatch)
    notebook.cells = [cell for cell in notebook.cells if "install" not in tags(cell)]
    (settings,) = (cell for cell in notebook.cells if "parameters" in tags(cell))
    settings.source = SHRUNK.format(folder=tmp_path)
    assert len(execute(notebook)) == len(TASKS)
    assert (tmp_path / "run" / "checkpoints" / "2" / "manifest.json").is_file()
    assert (tmp_path / "run" / "notebook" / "prediction.mp4").is_file()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_outputs_are_committed(path):
    text = path.read_text()
    assert '"execution_count": null' in text
    assert '"outputs": []' in text and '"output_type"' not in text
