"""Evaluation of finished videos: two folders, compared by name."""

import json

import numpy as np
import pytest
from helpers.scripts import fail, succeed
from helpers.videos import write
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from vdt_jax.errors import UserError
from vdt_jax.evaluation import folders
from vdt_jax.evaluation.folders import evaluate_folders, match
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.inference.inputs import open_mask
from vdt_jax.video import to_float

OPTIONS = dict(metrics=("psnr", "ssim"), batch_size=2)
LOSSLESS = dict(codec="ffv1", pix_fmt="bgr0")


def video(seed, num_frames=4, height=16, width=24):
    """Noise that is smooth in space: (F, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (num_frames, height // 4, width // 4, 3)), np.ones((1, 4, 4, 1))).astype(
        np.uint8
    )


def write_folder(folder, videos):
    for name, frames in videos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, frames, **LOSSLESS)
    return folder


@pytest.fixture
def pair(tmp_path):
    """Three videos, and others of the same names."""
    names = ("a.mkv", "b.mkv", "c/d.mkv")
    samples = write_folder(tmp_path / "samples", {name: video(i) for i, name in enumerate(names)})
    return samples, write_folder(tmp_path / "truth", {name: video(10 + i) for i, name in enumerate(names)})


def test_the_numbers_are_those_of_the_frames(pair, tmp_path, monkeypatch):
    calls = []
    report = evaluate_folders(*pair, output=tmp_path / "out", progress=lambda *n: calls.append(n), **OPTIONS)
    assert calls == [(2, 3), (3, 3)]
    row = report.tasks["videos"]["samples"]
    expected = [peak_signal_noise_ratio(video(10 + i), video(i), data_range=255) for i in range(3)]
    assert row["PSNR"] == pytest.approx(np.mean(expected), rel=1e-5) and row["SSIM"] < 0.5
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["tasks"]["videos"]["samples"]["PSNR"] == pytest.approx(row["PSNR"], rel=1e-5)
    protocol = written["protocol"]
    assert (protocol["clips"], protocol["frames"], protocol["height"], protocol["width"]) == (3, 4, 16, 24)
    assert protocol["samples_sha256"] != protocol["truth_sha256"] and "samples" in str(report)
    same = evaluate_folders(pair[0], pair[0], output=tmp_path / "same", **OPTIONS)
    assert same.tasks["videos"]["samples"] == {"PSNR": 100, "SSIM": pytest.approx(1)}


def test_fvd_and_lpips_take_the_videos_as_they_are(pair, tmp_path, monkeypatch):
    def features(videos):
        return videos.mean((1, 4)).reshape(len(videos), -1)[:, :3]

    def measures(options, size):
        assert size == (16, 24)
        return folders.Measures(options.metrics, lambda x, y, mask: np.abs(x - y).mean((1, 2, 3, 4)), features)

    monkeypatch.setattr(folders, "make_measures", measures)
    row = evaluate_folders(*pair, output=tmp_path, batch_size=2, metrics=("psnr",)).tasks["videos"]["samples"]
    ours, truth = (to_float(np.stack([video(seed + i) for i in range(3)])) for seed in (0, 10))
    assert row["FVD"] == pytest.approx(frechet_distance(features(ours), features(truth)), rel=1e-5)
    assert row["LPIPS"] == pytest.approx(np.abs(ours - truth).mean(), rel=1e-5)


def test_names_are_compared_without_suffix_and_a_gif_beside_its_video_is_skipped(pair, tmp_path):
    samples, truth = pair
    (truth / "a.mkv").rename(truth / "a.avi")
    for gif in (samples / "a.gif", samples / "e.gif", truth / "e.gif"):
        write(gif, video(0), codec="gif", pix_fmt="rgb8")
    names = [(str(x.relative_to(samples)), str(y.relative_to(truth))) for x, y in match(samples, truth)]
    assert names == [("a.mkv", "a.avi"), ("b.mkv", "b.mkv"), ("c/d.mkv", "c/d.mkv"), ("e.gif", "e.gif")]


def test_missing_counterparts_and_two_of_a_name(pair):
    samples, truth = pair
    (samples / "b.mkv").rename(samples / "b2.mkv")
    message = f"{truth} has no video named b2 (1 missing): samples and truth must have the same names"
    with pytest.raises(UserError) as error:
        match(samples, truth)
    assert message in str(error.value)
    (samples / "b2.mkv").unlink()
    with pytest.raises(UserError, match=r"samples has no video named b \(1 missing\)"):
        match(samples, truth)
    write(truth / "a.avi", video(0), **LOSSLESS)
    with pytest.raises(UserError, match=r"a\.avi and .*a\.mkv have the same name: keep one of them"):
        match(samples, truth)


@pytest.mark.parametrize("change", [{"num_frames": 5}, {"height": 20}])
def test_one_length_and_size(pair, tmp_path, change):
    write(pair[0] / "b.mkv", video(1, **change), **LOSSLESS)
    shape = {"num_frames": 4, "height": 16} | change
    message = "b.mkv has {num_frames} frames of {height}x24, .*a.mkv has 4 frames of 16x24: all videos must have one"
    with pytest.raises(UserError, match=message.format(**shape)):
        evaluate_folders(*pair, output=tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "steps applies only if a model makes the samples: leave it out, or leave out samples and truth"),
        ({"metrics": ("fvd",)}, "FVD needs at least 9 frames, .*a.mkv has 4: leave fvd out of metrics"),
        ({"ssim_border": 8}, "ssim_border must be < 8 for frames of 16x24, got 8"),
        ({"output": None}, "output must name a folder for the report, got none"),
        ({"truth": None}, "samples and truth must both name a folder, got samples=.* and truth=None"),
        ({"truth": "/nowhere"}, "folder not found: /nowhere"),
    ],
)
def test_mistakes(pair, tmp_path, options, message):
    arguments = {"samples": pair[0], "truth": pair[1], "output": tmp_path / "out"} | OPTIONS | options
    with pytest.raises(UserError, match=message):
        evaluate_folders(**arguments)


def test_the_script(pair, tmp_path):
    arguments = [f"--samples={pair[0]}", f"--truth={pair[1]}", f"--output={tmp_path}/out", "--metrics=psnr,ssim"]
    printed = succeed("evaluate.py", *arguments)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert f"{report['tasks']['videos']['samples']['PSNR']:.4g}" in printed and "\nclips: 3\n" in printed
    message = "checkpoint applies only if a model makes the samples: leave it out, or leave out samples and truth"
    assert message in fail("evaluate.py", *arguments, "--checkpoint=demo")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(pair, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"out cannot be written \(File exists\)"):
        evaluate_folders(*pair, output=tmp_path / "out", progress=lambda *_: pytest.fail("it worked"), **OPTIONS)
    assert (tmp_path / "out").read_text() == "mine"


def test_frames_of_several_sizes_are_refused(tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for number, width in enumerate((24, 24, 32)):
        Image.new("RGB", (width, 16)).save(tmp_path / "videos" / "a" / f"{number}.png")
    with pytest.raises(UserError, match="a has frames of 16x24 and of 16x32: all frames must have one size"):
        evaluate_folders(tmp_path / "videos", tmp_path / "videos", output=tmp_path / "out", **OPTIONS)
    with pytest.raises(UserError, match="a has frames of several sizes: give an image, or frames of one size"):
        open_mask(tmp_path / "videos" / "a")
