"""Datasets of tensorflow-datasets: written and read back, encoded, damaged, and such that are no videos."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.damaged_videos import video
from helpers.videos import numbers_of

from vdt_jax.data import make_source
from vdt_jax.data.clips import UnreadableClip
from vdt_jax.data.pipeline import batches
from vdt_jax.data.tfds_builder import write_dataset
from vdt_jax.errors import UserError

SHAPE = (4, 16, 24, 3)


def clips(count, start=0):
    return [{"video": np.full((6, 8, 12, 3), 10 * n, np.uint8), "label": n % 2} for n in range(start, start + count)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    assert write_dataset(path, {"train": clips(10), "held_out": clips(2, 20)}, (6, 8, 12, 3), ["a", "b"]).is_dir()
    return path


def test_a_dataset_written_here_is_read_back(dataset):
    options = {"name": f"tfds:{dataset}", "labels": True, "hop": 2}
    train, held_out = (make_source(options, (4, 8, 12, 3), split) for split in ("train", "held_out"))
    assert (len(train), len(held_out), train.num_classes) == (20, 4, 2)  # two windows of 4 in each clip of 6
    assert [(int(train.clip(n)["video"].mean()), train.clip(n)["label"]) for n in (0, 1, 18)] == [
        (0, 0),
        (0, 0),
        (90, 1),
    ]
    assert held_out.clip(3)["video"].mean() == 210
    assert train.identity == held_out.identity and train.identity.startswith("3 entries")
    assert make_source({"name": f"tfds:{dataset}"}, (4, 4, 4, 1), "train").clip(0)["video"].shape == (4, 4, 4, 1)
    code = f"import sys; from vdt_jax.data import make_source; make_source({options}, (4, 8, 12, 3), 'train')"
    ended = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('tensorflow' in sys.modules)"], check=False)
    assert ended.returncode == 0


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("in_text", [False, True])
def test_a_dataset_does_not_name_code_to_import(dataset, tmp_path, monkeypatch, key, in_text):
    """A stranger's features.json could name a class in any module, which tfds imports."""
    shutil.copytree(dataset, tmp_path / "a")
    (file,) = (tmp_path / "a").rglob("features.json")
    added = {"feature": {key: "stranger.Evil"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"more": json.dumps(added) if in_text else [added]}))
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"features.json names the class 'stranger.Evil': only features of tfds"):
        make_source({"name": f"tfds:{tmp_path}/a"}, (4, 8, 12, 3), "train")


def test_datasets_of_communities_are_not_fetched():
    with pytest.raises(
        UserError, match="folder not found: kaggle:videos; community datasets of tfds are not supported"
    ):
        make_source({"name": "tfds:kaggle:videos"}, (4, 8, 12, 3), "train")
    with pytest.raises(UserError, match="no_such_set") as refused:  # a version, not a community
        make_source({"name": "tfds:no_such_set:1.0.0"}, (4, 8, 12, 3), "train")
    assert "communities" not in str(refused.value)


def write_records(path, feature, values):
    """A dataset of one feature, `video`, and of these values."""
    import tensorflow_datasets as tfds

    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"video": feature(tfds.features)})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, value in enumerate(values):
                yield number, {"video": value}

    Records(data_dir=path, file_format="array_record").download_and_prepare()


def test_a_dataset_of_encoded_videos_of_any_length(tmp_path):
    lengths = [9, 40, 3] + [9] * 7
    write_records(tmp_path, lambda features: features.Text(), map(video, lengths))
    options = {"name": f"tfds:{tmp_path}"}
    train = make_source(options, SHAPE, "train", tmp_path / "bad.jsonl")
    held_out = make_source(options, SHAPE, "held_out")
    assert (len(train), len(held_out)) == (9, 1)
    assert numbers_of(train.clip(0)["video"]) == [0, 1, 2, 3]
    starts = {numbers_of(train.clip(1, np.random.default_rng(n))["video"])[0] for n in range(12)}
    assert len(starts) > 4
    assert next(batches(train, batch_size=9, seed=0))["video"].shape == (9, *SHAPE)  # the short one is replaced
    assert not (tmp_path / "bad.jsonl").exists()  # and is not a bad one


def test_records_that_cannot_be_read_are_listed_and_replaced_until_they_are_too_many(tmp_path):
    contents = [video(9), b"no video", video(9), b"", *[video(9)] * 6]
    write_records(tmp_path, lambda features: features.Text(), contents)
    options, bad = {"name": f"tfds:{tmp_path}", "held_out": 0.0}, tmp_path / "bad.jsonl"
    source = make_source(options | {"max_bad": 0.2}, SHAPE, "train", bad)
    assert next(batches(source, batch_size=10, seed=0))["video"].shape == (10, *SHAPE)
    listed = {line["path"]: line["reason"] for line in map(json.loads, bad.read_text().splitlines())}
    assert sorted(listed) == ["record 1", "record 3"] and listed["record 1"].startswith("its video cannot be decoded")
    with pytest.raises(UserError, match=r"2 of 10 videos cannot be read, more than data\.max_bad=0\.1"):
        next(batches(make_source(options, SHAPE, "train", bad), batch_size=10, seed=0))


def test_a_damaged_file_of_records_is_listed(tmp_path):
    write_dataset(tmp_path, {"train": clips(3)}, (6, 8, 12, 3), ["a", "b"])
    (file,) = tmp_path.rglob("*.array_record*")
    file.write_bytes(b"")
    source = make_source(
        {"name": f"tfds:{tmp_path}", "held_out": 0.0, "max_bad": 0.9}, SHAPE, "train", tmp_path / "bad.jsonl"
    )
    with pytest.raises(UnreadableClip, match="cannot be read"):
        source.clip(0)
    assert "record 0" in (tmp_path / "bad.jsonl").read_text()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((6, 8, 12, 3), np.float32, r"is float32 of shape \(6, 8, 12, 3\): a video is uint8 \(T, H, W, C\)"),
        ((6, 8, 12), np.uint8, r"is uint8 of shape \(6, 8, 12\): a video is uint8"),
        ((6, 8, 12, 4), np.uint8, r"is uint8 of shape \(6, 8, 12, 4\): .* with 1 or 3 channels"),
        ((6, 8, 12, 1), np.uint8, ""),
        ((None, 8, 12, 3), np.uint8, ""),
    ],
)
def test_tensors_that_are_videos_and_those_that_are_not(tmp_path, shape, dtype, message):
    values = np.full((2, *(size or 6 for size in shape)), 7, dtype)
    write_records(tmp_path, lambda features: features.Tensor(shape=shape, dtype=dtype), values)
    options = {"name": f"tfds:{tmp_path}"}
    if message:
        with pytest.raises(UserError, match=message):
            make_source(options, (4, 8, 12, 3), "train")
    else:
        clip = make_source(options, (4, 8, 12, 3), "train").clip(0)["video"]
        assert clip.shape == (4, 8, 12, 3) and (clip == 7).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tfds:no_such_dataset"}, "neither a folder that tfds wrote nor a dataset"),
        ({"name": "tfds:bair_robot_pushing_small"}, "is not prepared on this machine: python -c"),
        ({"feature": "film"}, "data.feature can be"),
        ({"stride": 3}, "have 6 frames, too few"),
        ({"feature": "label"}, r"data.feature=label of .* is int64 of shape \(\): a video is"),
        ({"name": "tfds:"}, "data.name has no dataset"),
        ({"name": "tfds"}, "data.name has no dataset"),
        ({"name": "tfds:/no/where"}, "/no/where is neither a folder that tfds wrote nor a dataset"),
        ({"held_out": 1.5}, "data.held_out must be from 0 to less than 1, got 1.5"),
    ],
)
def test_mistakes_with_datasets(dataset, options, message):
    with pytest.raises(UserError, match=message) as raised:
        make_source({"name": f"tfds:{dataset}"} | options, (4, 8, 12, 3), "train")
    assert "\n" not in str(raised.value)


def test_a_dataset_has_no_four_channels(dataset):
    with pytest.raises(UserError, match="in_channels must be 3, or 1 for grey, for a dataset of videos; got 4"):
        make_source({"name": f"tfds:{dataset}"}, (4, 8, 12, 4), "train")
