"""The Python example of the README runs as it is printed."""

import re
from pathlib import Path

import numpy as np

from vdt_jax.data import make_source
from vdt_jax.video import as_rgb, read_frames, write_video

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_makes_an_mp4(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) <= 5
    truth = make_source({"name": "moving_digits"}, (16, 32, 32, 1), "held_out").clip(0)["video"]
    write_video(tmp_path / "clip.mp4", as_rgb(truth))
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    written = np.stack(list(read_frames(tmp_path / "out.mp4"))).astype(int)
    assert written.shape == (16, 32, 32, 3)
    assert np.abs(written[:4] - as_rgb(truth)[:4]).mean() < 10  # given; mp4 twice
    assert np.abs(written[4:] - as_rgb(truth)[4:]).mean() > 10
