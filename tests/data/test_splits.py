"""Which videos training sees, and which are held out."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.damaged_videos import pictures, video
from helpers.videos import open_folder

from vdt_jax.data.discover import Found, find_videos
from vdt_jax.data.windows import of_split
from vdt_jax.errors import UserError
from vdt_jax.latents.cache import Latents, write_metadata, write_shard
from vdt_jax.video import VideoInfo


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
    with pytest.raises(UserError, match=r"has classes that .*train lacks: berlin"):
        open_folder(tmp_path / "train", "held_out", labels=True, **options)


def test_a_list_of_two_folders_keeps_their_split(tmp_path, monkeypatch):
    """What docs/data.md gives for a latent cache."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
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


FIVE = [Found(f"v{n}.mp4") for n in range(5)]


def test_a_longer_clip_or_damage_moves_no_video_to_the_other_split(tmp_path):
    """As `evaluate.py --stride` and `sample.py --extend` ask for other clips than training did."""
    (alone,) = of_split(FIVE, "held_out", 0.1)
    others = [n for n in range(5) if n != alone]
    for n in range(5):
        (tmp_path / FIVE[n].name).write_bytes(video(8 if n == alone else 12))
    options = {"held_out": 0.1, "max_bad": 0.5, "hop": 1}

    def count(split, **more):
        return len(open_folder(tmp_path, split, **options, **more))

    assert count("held_out") == 5 and count("train") == 4 * 9
    with pytest.raises(UserError, match=r"for the held_out split in .* the longest has 8; data\.short=pad"):
        count("held_out", stride=3)
    assert count("train", stride=3) == 4 * 3
    (tmp_path / FIVE[others[0]].name).write_bytes(b"")
    assert count("held_out") == 5 and count("train") == 3 * 9
    (tmp_path / FIVE[others[0]].name).write_bytes(video(12))
    (tmp_path / FIVE[alone].name).write_bytes(b"")
    with pytest.raises(UserError, match=r"no video for the held_out split in .* can be read, of 1: repair them"):
        count("held_out")
    assert count("train") == 4 * 9


def test_one_video_alone_is_in_both_splits_and_one_of_two_never(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video(8))
    assert {len(open_folder(tmp_path, split, held_out=0.1)) for split in ("train", "held_out")} == {2}
    (tmp_path / "b.mp4").write_bytes(b"")
    served = 0
    for split in ("train", "held_out"):
        try:
            served += len(open_folder(tmp_path, split, held_out=0.1, max_bad=0.5))
        except UserError as error:
            assert f"no video for the {split} split" in str(error)
    assert served == 2


def test_cached_latents_stay_in_their_split_too(tmp_path):
    (alone,) = of_split(FIVE, "held_out", 0.1)
    lengths = [4 if n == alone else 8 for n in range(5)]
    write_metadata(tmp_path, {"autoencoder": "", "scaling_factor": 1.0, "latent_size": [2, 2, 1], "num_shards": 1})
    moments = [np.zeros((length, 2, 2, 2)) for length in lengths]
    videos = [(FIVE[n], VideoInfo(lengths[n], 25.0, 16, 16), moments[n]) for n in range(5)]
    write_shard(tmp_path, 0, videos)
    both = [Latents((4, 2, 2, 1), split, str(tmp_path)) for split in ("train", "held_out")]
    assert list(map(len, both)) == [4 * 2, 1]
    assert [cache.identity[:9] for cache in both] == ["4 entries", "1 entries"]
    assert len(Latents((8, 2, 2, 1), "train", str(tmp_path))) == 4
    with pytest.raises(UserError, match=r"no video for the held_out split in .* the longest has 4"):
        Latents((8, 2, 2, 1), "held_out", str(tmp_path))


def test_a_list_without_a_split_says_so(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video(8))
    (tmp_path / "list.csv").write_text("path,split\na.mp4,train\n")
    with pytest.raises(UserError, match=r"no video for the held_out split in .*: the list assigns no videos to it"):
        open_folder(tmp_path / "list.csv", "held_out")
