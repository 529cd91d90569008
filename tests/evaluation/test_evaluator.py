"""Evaluation: the same numbers for all batch sizes, devices and interruptions; evaluate.py and `evaluate` agree."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.scripts import fail, succeed
from helpers.tiny_evaluation import CONFIG, PROTOCOL, SOURCE, pipeline
from helpers.videos import moving_square

from vdt_jax.checkpoints import save_model
from vdt_jax.data import make_source, take
from vdt_jax.distributed.mesh import make_mesh, replicated
from vdt_jax.errors import UserError
from vdt_jax.evaluation import evaluator
from vdt_jax.evaluation.evaluator import Evaluation, _data, evaluate
from vdt_jax.evaluation.measures import MEAN, MODEL, Measures
from vdt_jax.evaluation.metrics.frames import psnr
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.evaluation.protocol import clip_numbers
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.video import write_video

NUMBERS = clip_numbers(PROTOCOL)


def evaluation(folder, batch_size=4, num_devices=1, fvd=None, **changes):
    protocol, mesh, pipe = PROTOCOL | changes, make_mesh(num_devices), pipeline()
    if num_devices > 1:
        pipe = dataclasses.replace(pipe, params=jax.device_put(pipe.params, replicated(mesh)))
    measures = Measures(tuple(protocol["metrics"]), None, fvd)
    return Evaluation(pipe, protocol, SOURCE, measures, folder, batch_size)


def measure(made, task="predict", update=lambda count: None):
    return made.task(task, update)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return measure(evaluation(tmp_path_factory.mktemp("parts")))


def test_numbers_are_those_of_the_samples(result, tmp_path):
    summary, ranking = result
    again = evaluation(tmp_path)
    assert list(NUMBERS) == [3, 5, 7, 9, 11]
    batches = [NUMBERS[:4], [NUMBERS[4], 0, 0, 0]]
    scores, videos, truth = [], [], []
    for seed in (0, 1):
        drawn = [again.sample(numbers, "predict", seed) for numbers in batches]
        arrays = [np.concatenate(parts)[:5] for parts in zip(*drawn, strict=True)]
        scores.append(psnr(*arrays))
        videos.append(arrays[0])
        truth = arrays[1]
    mean = psnr(np.mean(videos, 0), truth, arrays[2])
    scores = np.stack(scores, axis=1)
    np.testing.assert_allclose(ranking, scores[:, 0], rtol=1e-5)
    np.testing.assert_allclose(summary[MODEL]["PSNR"], scores.mean(), rtol=1e-5)
    np.testing.assert_allclose(summary[MODEL]["best PSNR"], scores.max(1).mean(), rtol=1e-5)
    assert summary[MODEL]["best PSNR"] > summary[MODEL]["PSNR"]
    np.testing.assert_allclose(summary[MEAN]["PSNR"], mean.mean(), rtol=1e-5)
    np.testing.assert_array_equal(truth, take(SOURCE, NUMBERS)["video"])
    assert summary["copy nearest"]["motion"] == 0 and summary["copy nearest"]["PSNR"] > 0


@pytest.mark.parametrize(("batch_size", "num_devices"), [(2, 1), (8, 8)])
def test_batches_and_devices_change_nothing(result, tmp_path, batch_size, num_devices):
    summary, ranking = measure(evaluation(tmp_path, batch_size, num_devices))
    np.testing.assert_allclose(ranking, result[1], rtol=1e-4)
    for candidate, row in summary.items():
        np.testing.assert_allclose(list(row.values()), list(result[0][candidate].values()), rtol=1e-4, atol=1e-7)


def test_a_folder_with_results_of_other_batch_sizes_gives_the_same(result, tmp_path):
    for batch_size in (2, 4, 2):
        _, ranking = measure(evaluation(tmp_path, batch_size))
        np.testing.assert_allclose(ranking, result[1], rtol=1e-4)
    names = {"predict_0_2.npz", "predict_2_2.npz", "predict_0_4.npz", "predict_4_1.npz"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_frames_of_fvd(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "MIN_FRAMES", 3)
    made = evaluation(tmp_path, fvd=lambda video: video.mean((2, 3, 4)), fvd_frames="generated")
    assert made.fvd_frames("predict") == (1, 2, 3)
    assert made.fvd_frames("arbitrary_interpolation") is None  # clips differ
    summary, _ = measure(made, "arbitrary_interpolation")
    assert "FVD" not in summary[MODEL] and "PSNR" in summary[MODEL]
    monkeypatch.undo()
    with pytest.raises(UserError, match="FVD needs at least 9 frames, predict generates 3"):
        evaluation(tmp_path, fvd=lambda video: video, fvd_frames="generated").fvd_frames("predict")


@pytest.mark.parametrize(("every", "others"), [(2, range(4, 14, 2)), (1, range(8, 13))])
def test_the_truth_against_other_truth(tmp_path, every, others):
    def features(video):
        return video.mean((3, 4))[..., :2].reshape(len(video), -1)

    other_truth, itself = evaluation(tmp_path, 2, fvd=features, every=every).floor().values()
    clips, other = (take(SOURCE, n)["video"] for n in (range(3, 3 + 5 * every, every), others))
    assert other_truth == {"FVD": pytest.approx(frechet_distance(features(clips), features(other)))}
    assert other_truth["FVD"] > 1e-3 > abs(itself["FVD"])
    near_the_end = evaluation(tmp_path / "end", 2, fvd=features, first_clip=len(SOURCE) - 10)
    assert near_the_end.floor()["truth against other truth"].keys() == {"FVD"}  # of clips half-way between them
    at_the_end = evaluation(tmp_path / "other", 2, fvd=features, every=1, first_clip=len(SOURCE) - 5)
    other_truth, itself = at_the_end.floor().values()
    assert other_truth == {} and itself.keys() == {"FVD"}


def test_classes_are_given_only_in_the_tasks_named(tmp_path):
    without = evaluation(tmp_path)
    told = evaluation(tmp_path, told_labels=["backward"])
    guided = evaluation(tmp_path, told_labels=["backward"], guidance=3.0)
    for task, differing in (("predict", 1), ("backward", 3)):
        samples = [each.sample(range(4), task, 0)[0] for each in (without, told, guided)]
        assert len({video.tobytes() for video in samples}) == differing


def test_killed_work_resumes(result, tmp_path, monkeypatch):
    done = []

    def killed_after_two(count):
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(evaluation(tmp_path, 2), update=killed_after_two)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["predict_0_2.npz", "predict_2_2.npz"]
    (tmp_path / ".unfinished.host.1.1.predict_4_1.npz").write_bytes(b"half-written")
    measured = []
    real = Evaluation._measure
    monkeypatch.setattr(
        Evaluation, "_measure", lambda self, task, first: measured.append(first) or real(self, task, first)
    )
    summary, _ = measure(evaluation(tmp_path, 2))
    assert measured == [4]
    np.testing.assert_allclose(summary[MODEL]["SSIM"], result[0][MODEL]["SSIM"], rtol=1e-4)


def test_where_nothing_is_given_there_are_no_baselines(tmp_path):
    summary, _ = measure(evaluation(tmp_path, samples_per_clip=1, metrics=["psnr"]), "unconditional")
    assert list(summary) == [MODEL] and list(summary[MODEL]) == ["PSNR"]


# ---------------------------------------------------------------------- evaluate and evaluate.py

OPTIONS = dict(num_clips=3, batch_size=2, steps=2, shown=1, metrics=("psnr", "ssim"))


def test_a_report_and_its_page(tmp_path):
    done = []
    options = OPTIONS | {"output": tmp_path, "tasks": ["predict", "unconditional"]}
    report = evaluate(pipeline(), checkpoint="tiny", progress=lambda *pair: done.append(pair), **options)
    assert done == [(0, 6), (2, 6), (3, 6), (5, 6), (6, 6)]
    contents = json.loads((tmp_path / "report.json").read_text())
    assert contents["protocol"]["clips"] == 3 and contents["protocol"]["stride"] is None
    assert contents["protocol"]["model_sha256"] == fingerprint(pipeline().model, pipeline().params)
    assert len(contents["protocol"]["clips_sha256"]) == 64 and contents["protocol"]["crop"] == SOURCE.crop
    assert set(contents["tasks"]) == {"predict", "unconditional"}
    assert contents["tasks"]["predict"]["copy nearest"]["PSNR"] > 5
    assert f"{contents['tasks']['predict']['model']['PSNR']:.4g}" in str(report)
    page = (tmp_path / "index.html").read_text()
    assert "predict: frames 0-1 of" in page and "nothing given" in page and "http-equiv" not in page
    assert "worst: clip" in page and "best: clip" in page and len(list(tmp_path.glob("predict_*.gif"))) == 3
    command = f"--checkpoint=tiny --output={tmp_path}-predict --tasks=predict --num_clips=3 --batch_size=2 --steps=2"
    assert f"python evaluate.py {command}" in page and page.count("<span>sample</span>") == 3 * 1 + 3 * 3

    (tmp_path / "report.json").unlink()
    for kept in sorted((tmp_path / "parts").iterdir())[:2]:  # as if it had been killed
        kept.unlink()
    evaluate(pipeline(), checkpoint="tiny", **options)
    assert json.loads((tmp_path / "report.json").read_text()) == contents
    with pytest.raises(UserError, match=r"has an evaluation with seed=0 \(now 1\), .*choose another output"):
        evaluate(pipeline(), checkpoint="tiny", **options | {"tasks": ["predict"], "seed": 1})


def test_how_psnr_and_ssim_are_averaged(tmp_path):
    options = OPTIONS | {"tasks": ["predict"], "shown": 0, "num_clips": 2}
    usual, changed = (
        evaluate(pipeline(), output=tmp_path / name, **options | settings).tasks["predict"]["copy nearest"]
        for name, settings in (("usual", {}), ("changed", {"psnr_of": "frames", "ssim_border": 5}))
    )
    assert changed["PSNR"] > usual["PSNR"] and changed["SSIM"] != usual["SSIM"]
    protocol = json.loads((tmp_path / "changed" / "report.json").read_text())["protocol"]
    assert (protocol["psnr_of"], protocol["ssim_border"]) == ("frames", 5)


def test_other_data_than_the_model_was_trained_on(tmp_path):
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", moving_square(12))
    options = OPTIONS | {"tasks": ["predict"], "shown": 0, "num_clips": 2}
    videos = evaluate(pipeline(), output=tmp_path / "a", data=tmp_path / "videos", stride=2, **options).protocol
    assert (videos["data"]["name"], videos["stride"], videos["clips"]) == ("video_folder", 2, 2)
    assert videos["crop"] == "centre, then bicubic with antialiasing" and "data.hop" in videos["clips_per_video"]
    section = evaluate(pipeline(), output=tmp_path / "b", data={"name": "synthetic"}, **options).protocol
    assert section["data"] == {"name": "synthetic"}
    assert (section["stride"], section["clips_per_video"]) == (None, "1")


@pytest.mark.parametrize(
    ("trained", "options", "expected"),
    [
        ({}, {}, {}),
        ({"stride": 3, "hop": 2, "labels": True}, {}, {"stride": 3, "labels": True}),
        ({"fps": 10.0, "held_out": 0.5, "crop": "dit"}, {}, {"fps": 10.0, "crop": "dit"}),
        ({"fps": 10.0}, {"stride": 2}, {"stride": 2, "fps": None}),
        ({"stride": 3}, {"fps": 5.0}, {"stride": None, "fps": 5.0}),
    ],
)
def test_a_folder_is_measured_whole_and_as_the_model_was_trained(trained, options, expected):
    pipe = dataclasses.replace(pipeline(), config=CONFIG | {"data": {"name": "video_folder", **trained}})
    section = _data(EvaluateOptions(output="out", data="videos", **options), pipe)
    assert section == {"name": "video_folder", "path": "videos", "held_out": 0.0} | expected


def test_of_a_list_the_test_rows_are_measured(tmp_path):
    for name in "abc":
        write_video(tmp_path / "videos" / f"{name}.mp4", moving_square(12)[: 4 + 4 * (name == "c")])
    (tmp_path / "list.csv").write_text("path,split\nvideos/a.mp4,train\nvideos/b.mp4,train\nvideos/c.mp4,test\n")
    counts = {}
    for data in ("videos", "list.csv"):
        section = _data(EvaluateOptions(output="out", data=tmp_path / data), pipeline())
        counts[data] = len(make_source(section, (4, 16, 16, 3), "held_out"))
    assert counts == {"videos": 4, "list.csv": 2}  # one clip of 4 frames, two of 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 2, "fps": 5}, "stride and fps exclude each other, got stride=2 and fps=5"),
        ({"tasks": ["predicts"]}, "tasks must be one of predict, .*, got 'predicts'"),
        ({"task": "predict"}, "unknown option 'task': did you mean 'tasks'"),
        ({"tasks": []}, "tasks must name at least one"),
        ({"output": None}, "output must name a folder for the report, got none: --output=FOLDER"),
        ({"preset": "latte-sky"}, "measures 16 frames of 256x256, this model generates 4 of 16x16"),
        ({"metrics": ["psnr", "fid"]}, "metrics must be one of psnr, .*, got 'fid'"),
        ({"metrics": ["fvd"], "metric_weights": "/nowhere"}, r"no i3d-kinetics-400\.ckpt in folder /nowhere"),
        ({"num_clips": 0}, "num_clips must be >= 1, got 0"),
        ({"first_clip": 99999999}, "first_clip must be < .*, the clips of the split, got 99999999"),
        ({"num_given": 4}, "given"),
        ({"ssim_border": 8}, "ssim_border must be < 8 for frames of 16x16, got 8"),
        ({"psnr_of": "frame"}, "psnr_of must be one of clip, frames, got 'frame'"),
        ({"guidance": 2}, "guidance=2.0 needs classes: name the tasks"),
        ({"data": {"name": "synthetic"}, "told_labels": ["predict"]}, "got 10 in the model and 1 in the data"),
    ],
)
def test_mistakes(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate(pipeline(), **{"output": tmp_path / "out", "tasks": ["predict"]} | options)


def test_the_script_prints_the_protocol_and_the_table(tmp_path):
    save_model(tmp_path / "tiny", CONFIG, pipeline().params)
    arguments = [f"--checkpoint={tmp_path}/tiny", f"--output={tmp_path}/out", "--tasks=predict", "--metric_weights=/no"]
    printed = succeed("evaluate.py", *arguments, "--num_clips=2", "--steps=2", "--shown=0")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert f"{report['tasks']['predict']['model']['PSNR']:.4g}" in printed
    assert f"\nmodel sha256: {report['protocol']['model_sha256']}\n" in printed and "\nclips: 2\n" in printed
    assert "not measured: LPIPS: alexnet needs at least 31 pixels" in printed and "truth against" not in printed


@pytest.mark.slow
def test_the_script_reports_a_mistake_in_one_line(tmp_path):
    assert "num_clips must be >= 1, got 0" in fail("evaluate.py", f"--output={tmp_path}", "--num_clips=0")
