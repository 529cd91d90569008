"""Which videos training sees, and which are held out."""

import re
from pathlib import Path

import pytest
from damaged_videos import pictures, video
from test_datasets import open_folder

from vdt_jax.data.discover import Found, find_videos
from vdt_jax.data.windows import of_split
from vdt_jax.errors import UserError


def test_another_folder_is_held_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "0.mp4").write_bytes(video(8))
    (tmp_path / "b" / "0.mp4").write_bytes(video(12))
    options = {"held_out_path": str(tmp_path / "b")}
    assert [len(open_folder(tmp_path / "a", split, **options)) for split in ("train", "held_out")] == [2, 3]


def test_what_is_held_out_may_have_other_subfolders_but_no_other_classes(tmp_path):
    """The official splits of Cityscapes, Sky and BAIR."""
    for name in ("train/aachen", "test/berlin"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0000.mp4").write_bytes(video(4))
    options = {"held_out_path": str(tmp_path / "test")}
    for split in ("train", "held_out"):
        source = open_folder(tmp_path / "train", split, **options)
        assert source.num_classes == 1 and source.clip(0)["label"] == 0
    assert open_folder(tmp_path / "train", labels=True, **options).classes == ["aachen"]
    with pytest.raises(UserError, match=r"has classes that .*train has not: berlin"):
        open_folder(tmp_path / "train", "held_out", labels=True, **options)


def test_a_list_of_two_folders_keeps_their_split(tmp_path, monkeypatch):
    """What docs/data.md gives for a latent cache."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", page.partition("## A latent cache")[2].partition("\n## ")[0], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("sky_train/one/1", "sky_train/two/2", "sky_test/one/3"):
        Path(name).mkdir(parents=True)
        pictures(Path(name, "frames"), 4)
    exec(code, {})
    assert {video.name: video.split for video in find_videos("sky.jsonl")[1]} == {
        "sky_test/one/3/frames": "held_out",
        "sky_train/one/1/frames": "train",
        "sky_train/two/2/frames": "train",
    }


def test_a_video_is_in_one_split_and_stays_there():
    videos = [Found(f"{n}.mp4") for n in range(1000)]
    held_out = of_split(videos, "held_out", 0.1)
    assert 70 < len(held_out) < 130
    assert sorted(held_out + of_split(videos, "train", 0.1)) == list(range(1000))
    fewer = of_split(videos[:500], "held_out", 0.1)
    assert fewer == [n for n in held_out if n < 500]
    for count in (2, 3):
        assert 1 <= len(of_split(videos[:count], "held_out", 0.001)) < count
        assert 1 <= len(of_split(videos[:count], "held_out", 0.999)) < count
    assert of_split(videos[:1], "held_out", 0.1) == of_split(videos[:1], "train", 0.1) == [0]
