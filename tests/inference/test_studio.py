"""What the page calls refuses whatever is sent to it, in one line."""

import dataclasses

import numpy as np
import pytest
from helpers.tiny_evaluation import CONFIG, pipeline

from vdt_jax.errors import UserError
from vdt_jax.inference.studio import PAINTED, Studio
from vdt_jax.video import read_frames, write_video

GOOD = dict(file=None, painted=None, task="predict", num_given=2, sampler="unipc", steps=2.0, seed=0)


@pytest.fixture
def studio(tmp_path):
    (tmp_path / "made").mkdir()
    return Studio(pipeline(), tmp_path / "made")


def run(studio, **changes):
    return studio.run(**GOOD | changes, progress=lambda done, total: None)


def painted():
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:32, :, 3] = 255
    return {"layers": [layer]}


def test_a_task_and_what_is_painted(studio):
    for changes in ({}, {"task": PAINTED, "painted": painted()}, {"task": "unconditional", "num_given": None}):
        comparison, sample = run(studio, **changes)
        assert len(list(read_frames(sample))) == len(list(read_frames(comparison))) == 4
    assert studio.first_frame(None, 3)["background"].shape == (256, 256, 3)


def test_a_held_out_clip_is_taken_whole_whatever_the_stride_of_training(tmp_path):
    """Its frames are chosen already: a stride of 3 left 2 of its 4 frames, too few to predict from."""
    write_video(tmp_path / "a.mp4", np.zeros((10, 16, 16, 3), np.uint8))
    data = {"name": "video_folder", "path": str(tmp_path), "stride": 3}
    studio = Studio(dataclasses.replace(pipeline(), config=CONFIG | {"data": data}), tmp_path)
    assert len(list(read_frames(run(studio, num_given=3)[1]))) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**63}, "seed must be <= 9223372036854775807, got 9223372036854775808"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"seed": float("nan")}, "seed must be a whole number, got nan"),
        ({"seed": float("inf")}, "seed must be a whole number, got inf"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"steps": 2.5}, r"steps must be a whole number, got 2\.5"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps": 251}, "steps must be <= 250 on the page, got 251"),
        ({"steps": [3]}, r"steps must be a whole number, got \[3\]"),
        ({"num_given": None}, "num_given must be a whole number, got None"),
        ({"num_given": 4}, "num_given must be 1 to 3 for 4 frames, got 4"),
        ({"task": "fly"}, "task must be one of predict, .*, got 'fly'"),
        ({"task": 3}, "task must be a text, got 3"),
        ({"task": []}, r"task must be a text, got \[\]"),
        ({"sampler": None}, "sampler must be a text, got None"),
        ({"sampler": {}}, r"sampler must be a text, got \{\}"),
        ({"task": PAINTED}, "nothing is painted"),
        ({"task": PAINTED, "painted": "all"}, "nothing is painted"),
        ({"task": PAINTED, "painted": {"layers": [None, np.ones((3, 3))]}}, "nothing is painted"),
        ({"file": 5}, "upload a single file, not a list of files"),
        ({"file": "/nowhere"}, "upload a single file, not a list of files"),
        ({"file": "/tmp"}, "upload a single file, not a list of files"),
    ],
)
def test_every_value_is_checked(studio, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run(studio, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [2**63, "1", None])
def test_the_first_frame_is_checked_too(studio, seed):
    with pytest.raises(UserError, match="seed must be"):
        studio.first_frame(None, seed)


def test_a_list_that_names_files_of_the_machine_is_not_opened(studio, tmp_path):
    write_video(tmp_path / "secret.mp4", np.zeros((6, 16, 16, 3), np.uint8))
    (tmp_path / "a.CSV").write_text(f"path\n{tmp_path}/secret.mp4\n")
    for call in (lambda: studio.first_frame(str(tmp_path / "a.CSV"), 0), lambda: run(studio, file=str(tmp_path))):
        with pytest.raises(UserError, match="upload a single file, not a list of files"):
            call()
