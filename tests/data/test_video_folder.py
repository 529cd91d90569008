"""Videos of a folder or a list, kept indexes, windows, moving MNIST."""

import gzip
import json
import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.damaged_videos import animation, pictures, video
from helpers.videos import numbers_of, open_folder, write

from vdt_jax.data import make_source
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.digits import read_digits
from vdt_jax.data.discover import Found, find_videos
from vdt_jax.data.index import index_videos
from vdt_jax.data.pipeline import batches
from vdt_jax.data.video_folder import VideoFolder
from vdt_jax.data.windows import ClipTable, Window
from vdt_jax.errors import UserError
from vdt_jax.video import VideoInfo

SHAPE = (4, 16, 24, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of all kinds of videos, and things that are none."""
    folder = tmp_path_factory.mktemp("data") / "videos"
    for name in ("run/deep", "walk"):
        (folder / name).mkdir(parents=True)
    (folder / "run" / "v10.mp4").write_bytes(video(8))
    (folder / "run" / "v9.avi").write_bytes(video(8))
    animation(folder / "run" / "deep" / "a.gif", 8)
    animation(folder / "walk" / "a.webp", 8)
    pictures(folder / "walk" / "frames", 12)
    (folder / "walk" / "readme.txt").write_text("none")
    (folder / "run" / "cover.jpg").write_bytes((folder / "walk" / "frames" / "0.png").read_bytes())
    return folder


def test_what_is_found_in_natural_order_with_classes(folder):
    root, found = find_videos(folder)
    assert root == folder
    names = ["run/deep/a.gif", "run/v9.avi", "run/v10.mp4", "walk/a.webp", "walk/frames"]
    assert found == [Found(name, name.split("/")[0]) for name in names]


def test_clips_of_all_kinds_with_their_labels(folder):
    source = open_folder(folder, hop=4, labels=True)
    assert source.classes == ["run", "walk"] and source.num_classes == 2
    clips = [source.clip(number) for number in range(len(source))]
    assert [clip["label"] for clip in clips] == [0] * 6 + [1] * 5
    assert [numbers_of(clip["video"]) for clip in clips[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers_of(clips[-1]["video"]) == [8, 9, 10, 11]
    assert open_folder(folder).num_classes == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_list_names_videos_labels_and_splits(folder, suffix):
    rows = [("walk/frames", "slow", "train"), ("run/v10.mp4", "fast", "test"), ("run/v9.avi", "fast", "")]
    path = folder.parent / f"list.{suffix}"
    if suffix == "csv":
        path.write_text("path,label,split\n" + "".join(f"videos/{','.join(row)}\n" for row in rows))
    else:
        entries = [{"path": f"videos/{name}", "label": label, "split": split} for name, label, split in rows]
        path.write_text("\n".join(map(json.dumps, entries)))
    train, held_out = (open_folder(path, split, labels=True) for split in ("train", "held_out"))
    assert train.classes == held_out.classes == ["fast", "slow"]
    assert len(train) == 2 + 3 and len(held_out) == 2 and held_out.clip(0)["label"] == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,label\nx.mp4,1\n", "entry 1 has no path"),
        ("a.csv", "path,split\nx.mp4,somewhere\n", "split 'somewhere'"),
        ("a.jsonl", "{not json}\n", "is not a list of videos"),
        ("a.jsonl", "[1]\n", "entry 1 has no path"),
        ("a.csv", "path\n", "no videos in"),
        ("a.csv", "path,split,Split\nx.mp4,train,test\n", "entry 1 has two columns named split: remove one"),
        ("a.csv", "path,label\nx,y.mp4,run\n", "entry 1 has more values than the list has columns: quote a value"),
        ("a.csv", "path,split\n  ,train\n", "entry 1 has no path"),
        ("a.jsonl", '{"path": "x.mp4", "SPLIT": "somewhere"}\n', "split 'somewhere'"),
    ],
)
def test_lists_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        find_videos(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_as_spreadsheets_write_them(tmp_path, encoding, separator):
    text = "path,label,split\nä b.mp4,run,train\n".replace(",", separator)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "a.csv").write_bytes((mark + text).encode(encoding))
    assert find_videos(tmp_path / "a.csv")[1] == [Found("ä b.mp4", "run", "train")]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path, label, split", "{name}, {label}, {split}"),
        ("path ,label\t, split ", "{name} ,{label}\t, {split} "),
        ("Path,LABEL,Split", "{name},{label},{split}"),
        (" PATH , note , Label , SPLIT ", '"{name}", "a, b", "{label}", "{split}"'),
        ("\ufeffpath,la bel,spl it\r", "{name},{label},{split}\r"),
    ],
)
@pytest.mark.parametrize("test", ["test", "Test", "VAL"])
def test_columns_may_differ_in_case_and_spaces(tmp_path, header, row, test):
    rows = [{"name": "a.mp4", "label": "run", "split": "train"}, {"name": "b c.mp4", "label": "Walk", "split": test}]
    text = "\n".join([header, *(row.format(**values) for values in rows)])
    (tmp_path / "list.csv").write_text(text, newline="")
    expected = [Found("a.mp4", "run", "train"), Found("b c.mp4", "Walk", "held_out")]
    assert find_videos(tmp_path / "list.csv")[1] == expected
    keys = {"Path": "name", " label": "label", "SPLIT": "split"}
    lines = [json.dumps({key: values[name] for key, name in keys.items()}) for values in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert find_videos(tmp_path / "list.jsonl")[1] == expected


def test_the_layouts_in_the_docs_become_lists_and_folders(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    layouts = page.partition("## Layouts")[2]
    ucf101, kth, cityscapes = re.findall("```python\n(.*?)```", layouts, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("Run/v_Run_g08_c01.avi", "Run/v_Run_g01_c01.avi", "boxing/person20_boxing_d1_uncomp.avi"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("boxing/person21_boxing_d1_uncomp.avi").touch()
    Path("ucfTrainTestlist").mkdir()
    Path("ucfTrainTestlist/trainlist01.txt").write_bytes(b"Run/v_Run_g08_c01.avi 1\r\n")
    Path("ucfTrainTestlist/testlist01.txt").write_bytes(b"Run/v_Run_g01_c01.avi\r\n")
    exec(ucf101, {})
    exec(kth, {})
    assert set(find_videos("ucf101.csv")[1]) == {
        Found("Run/v_Run_g01_c01.avi", "Run", "held_out"),
        Found("Run/v_Run_g08_c01.avi", "Run", "train"),
    }
    assert set(find_videos("kth.csv")[1]) == {
        Found("boxing/person20_boxing_d1_uncomp.avi", "boxing", "train"),
        Found("boxing/person21_boxing_d1_uncomp.avi", "boxing", "held_out"),
    }
    for city in ("train/bremen", "test/bonn"):
        Path("leftImg8bit_sequence", city).mkdir(parents=True)
        for n in range(60):
            Path(f"leftImg8bit_sequence/{city}/x_{n // 30:06d}_{n % 30:06d}_leftImg8bit.png").touch()
    exec(cityscapes, {})
    assert [video.name for video in find_videos("snippets/train")[1]] == ["bremen/0000", "bremen/0001"]
    frames = [frame for snippet in range(2) for frame in sorted(Path(f"snippets/test/bonn/000{snippet}").iterdir())]
    assert (
        all(frame.is_file() and frame.name[2:8] == f"00{frame.parent.name}" for frame in frames) and len(frames) == 60
    )


def test_crops_and_flips_only_where_asked_and_the_same_for_a_position(folder):
    plain = open_folder(folder / "walk" / "frames", shape=(4, 16, 16, 3))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(plain.clip(0, rng)["video"], plain.clip(0)["video"])
    flipped = open_folder(folder / "walk" / "frames", random_flip=True)
    views = {flipped.clip(0, np.random.default_rng(n))["video"].tobytes() for n in range(8)}
    still = flipped.clip(0)["video"]
    assert views == {still.tobytes(), np.ascontiguousarray(still[:, :, ::-1]).tobytes()}
    as_dit = open_folder(folder / "walk" / "frames", shape=(4, 16, 16, 3), crop="dit")
    assert "center_crop_arr" in as_dit.crop and "center" not in plain.crop
    assert (as_dit.clip(0)["video"] != plain.clip(0)["video"]).any()
    for wrong, message in (({"crop": "x"}, "must be one of exact, dit, got 'x'"), ({"random_crop": 0.5}, "exclude")):
        with pytest.raises(UserError, match=f"data.crop.*{message}"):
            open_folder(folder / "walk" / "frames", **{"crop": "dit"} | wrong)
    cropped = open_folder(folder / "walk" / "frames", shape=(4, 16, 16, 3), random_crop=0.5)
    draws = [cropped.clip(2, np.random.default_rng(n))["video"] for n in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() and cropped.clip(2)["video"].shape == (4, 16, 16, 3)

    def run(first_step):
        return next(batches(cropped, batch_size=6, seed=3, first_step=first_step))["video"]

    np.testing.assert_array_equal(run(4), run(4))


def test_an_index_is_kept_until_a_file_changes(folder, monkeypatch):
    root, found = find_videos(folder)
    looked_at = []
    probe = Decoders.probe

    def counting(self, path, content=b""):
        looked_at.append(os.path.basename(path))  # noqa: PTH119
        return probe(self, path, content)

    monkeypatch.setattr(Decoders, "probe", counting)
    first = index_videos(root, found, Decoders())
    looked_at.clear()
    assert index_videos(root, found, Decoders()) == first and not looked_at
    (folder / "run" / "v9.avi").write_bytes(video(11))
    (folder / "walk" / "frames" / "99.png").write_bytes((folder / "walk" / "frames" / "0.png").read_bytes())
    again = index_videos(root, found, Decoders())
    assert sorted(looked_at) == ["frames", "v9.avi"]
    assert [info.num_frames for info in again] == [8, 11, 8, 8, 13]
    (folder / "walk" / "frames" / "99.png").unlink()
    (folder / "run" / "v9.avi").write_bytes(video(8))


def test_windows_by_stride_and_by_rate():
    info = VideoInfo(20, 30.0, 8, 8, range(0, 20), 1 / 30)
    by_stride = Window(4, stride=3, hop=2)
    assert by_stride.count(info) == 6 and by_stride.numbers(info, 5) == [10, 13, 16, 19]
    by_rate = Window(4, fps=10.0, hop=2)
    assert by_rate.count(info) == 6 and by_rate.numbers(info, 5) == [10, 13, 16, 19]
    slow = VideoInfo(5, 10.0, 8, 8)
    assert Window(4, fps=20.0).numbers(slow, 0) == [0, 0, 1, 1]  # half-way times go to the frame before
    uneven = VideoInfo(5, 5.0, 8, 8, (0, 1, 10, 11, 20), 0.1)
    assert Window(3, fps=1.0, hop=1).numbers(uneven, 0) == [0, 2, 4]
    assert Window(3, fps=1.0, hop=1).count(uneven) == 2
    short = Window(8, hop=1, short="pad")
    assert short.count(slow) == 1 and short.numbers(slow, 0) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert Window(8, fps=10.0, short="pad").numbers(slow, 0) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert Window(8).count(slow) == 0
    for wrong in ({"stride": 0}, {"hop": 0}, {"fps": -1.0}, {"short": "stretch"}, {"fps": 5.0, "stride": 2}):
        with pytest.raises(UserError, match=r"data\."):
            Window(4, **wrong)


def test_videos_that_are_too_short_are_logged_once(tmp_path, caplog):
    for name, length in (("a", 3), ("b", 8), ("c", 9)):
        (tmp_path / f"{name}.mp4").write_bytes(video(length))
    for split in ("train", "held_out"):
        open_folder(tmp_path, split)
    (line,) = caplog.messages
    assert "skipped 1 of 3 videos, too short for a clip; data.short=pad" in line


def test_short_videos_are_padded_where_asked(tmp_path, caplog):
    write(tmp_path / "a.mp4", np.stack([np.full((16, 24, 3), 80 * n, np.uint8) for n in range(3)]))
    with pytest.raises(UserError, match=r"the longest has 3; data\.short=pad"):
        open_folder(tmp_path)
    caplog.clear()
    clip = open_folder(tmp_path, short="pad").clip(0)["video"]
    assert not caplog.messages
    np.testing.assert_array_equal(clip[2], clip[3])
    assert (clip[1] != clip[2]).any()


def test_a_table_of_clips_counts_through_all_videos():
    table = ClipTable([2, 0, 3])
    assert [table[n] for n in range(len(table))] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    with pytest.raises(IndexError):
        table[5]


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """24 digits, white blocks of growing height, in every format."""
    folder = tmp_path_factory.mktemp("digits")
    digits = np.zeros((24, 28, 28), np.uint8)
    for number, digit in enumerate(digits):
        digit[4 : 5 + number % 20, 10:18] = 255
    idx = struct.pack(">4i", 0x803, 24, 28, 28) + digits.tobytes()
    (folder / "train-images-idx3-ubyte").write_bytes(idx)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    np.save(folder / "digits.npy", digits)
    np.savez(folder / "digits.npz", y_train=np.zeros(24), x_train=digits)
    (folder / "json").mkdir()
    for number in range(2):
        part = (digits[12 * number : 12 * number + 12] / 255).round(3).ravel().tolist()
        (folder / "json" / f"{number}.json").write_text(json.dumps({"data": part}))
    return folder, digits


FORMATS = ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "digits.npy", "digits.npz", "json"]


@pytest.mark.parametrize("name", FORMATS)
def test_digits_in_every_format(digit_files, name):
    folder, digits = digit_files
    np.testing.assert_array_equal(read_digits(folder / name), digits)


def test_moving_mnist_is_the_stochastic_protocol(digit_files):
    options = {"name": "moving_mnist", "path": str(digit_files[0] / "digits.npy"), "num_digits": 1}
    train, held_out = (make_source(options, (30, 64, 64, 1), split) for split in ("train", "held_out"))
    speeds, turns, heights = [], 0, {"train": set(), "held_out": set()}
    for number in range(40):
        clip = train.clip(number)["video"][..., 0].astype(float)
        mass = clip.sum((1, 2))
        np.testing.assert_allclose(mass, mass[0])  # whole pixels, and never over the edge
        y, x = ((clip.sum(axis) * np.arange(64)).sum(1) / mass for axis in (2, 1))
        moves = np.stack([np.diff(y), np.diff(x)], 1)
        np.testing.assert_allclose(moves, moves.round(), atol=1e-9)
        speeds += np.abs(moves).max(1).tolist()
        turns += int((np.diff(moves, axis=0) != 0).any(1).sum())
        for split, source in (("train", train), ("held_out", held_out)):
            heights[split].add(int((source.clip(number)["video"][0].max((1, 2)) > 128).sum()))
    assert round(max(speeds)) == 4 and turns > 80
    assert train.clip(3)["video"].shape == (30, 64, 64, 1)
    np.testing.assert_array_equal(train.clip(3)["video"], train.clip(3, np.random.default_rng(0))["video"])
    assert len(heights["train"]) > len(heights["held_out"]) > 1


def test_mistakes_with_digits(digit_files, tmp_path):
    (tmp_path / "a.gz").write_bytes(b"nothing")
    (tmp_path / "list.json").write_text("[1, 2]")
    np.save(tmp_path / "flat.npy", np.zeros((4, 784), np.uint8))
    for path, shape, message in [
        ("", (4, 64, 64, 1), "no digits at"),
        (tmp_path / "a.gz", (4, 64, 64, 1), "holds no digits"),
        (tmp_path / "list.json", (4, 64, 64, 1), "holds no digits"),
        (tmp_path / "flat.npy", (4, 64, 64, 1), r"shape \(4, 784\)"),
        (digit_files[0] / "digits.npy", (4, 32, 32, 1), "more than 32x32"),
    ]:
        with pytest.raises(UserError, match=message):
            make_source({"name": "moving_mnist", "path": str(path)}, shape, "train")


def test_videos_come_the_same_on_any_number_of_hosts_and_processes(folder):
    source = open_folder(folder, random_crop=0.6, random_flip=True)

    def run(**options):
        stream = batches(source, batch_size=4, seed=5, **options)
        return np.stack([next(stream)["video"] for _ in range(2)])

    whole = run(first_step=1, num_threads=1)
    np.testing.assert_array_equal(run(first_step=2, num_threads=3)[0], whole[1])
    halves = [run(first_step=1, host=host, num_hosts=2) for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_the_identity_of_clips_is_that_of_their_files_wherever_they_are(folder, tmp_path):
    train, held_out = (open_folder(folder, split, held_out=0.1).identity for split in ("train", "held_out"))
    assert train.startswith("4 entries, SHA-256 ") and held_out.startswith("1 entries") and train != held_out
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert open_folder(copy, held_out=0.1).identity == train
    with (copy / "run" / "v9.avi").open("ab") as file:
        file.write(b"0")
    assert open_folder(copy, held_out=0.1).identity != train


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"random_crop": 1.5}, "data.random_crop must be from 0 to 1, got 1.5"),
        ({"held_out": 1.0}, "data.held_out must be at least 0 and below 1, got 1"),
        ({"max_bad": -1}, "data.max_bad must be from 0 to 1, got -1"),
        ({"time_limit": -1}, "data.time_limit must be > 0, got -1"),
        ({"memory_limit": 0}, "data.memory_limit must be > 0, got 0"),
    ],
)
def test_options_out_of_range_are_named(option, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        VideoFolder((4, 16, 16, 3), "train", "videos", **option)


@pytest.mark.parametrize("num_digits", [0, -1, 10**9])
def test_the_number_of_digits_has_limits(num_digits):
    for name in ("moving_digits", "moving_mnist"):
        with pytest.raises(UserError, match=f"data.num_digits must be from 1 to 100, got {num_digits}$"):
            make_source({"name": name, "num_digits": num_digits}, (4, 64, 64, 1), "train")
