"""Evaluation: the same numbers whatever the batches, the devices and the interruptions; and what they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.data import make_source, take
from vdt_jax.distributed.mesh import make_mesh
from vdt_jax.errors import UserError
from vdt_jax.evaluation.evaluator import MODEL, Evaluation, available_metrics, best_and_worst, make_measures, summarise
from vdt_jax.evaluation.metrics.frames import psnr
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.protocol import PRESETS, Protocol, chosen_clips, find_preset
from vdt_jax.inference.functional import LoadedModel
from vdt_jax.models.vdt import VDT

NETWORK = VDT(
    input_size=(16, 16),
    num_frames=4,
    in_channels=1,
    patch_size=8,
    hidden_size=16,
    depth=1,
    num_heads=2,
    num_classes=10,
    learn_sigma=False,
)
DATA = {"name": "moving_digits", "num_digits": 1}
SOURCE = make_source(DATA, NETWORK.video_shape, "held_out")
PROTOCOL = Protocol(
    preset=None,
    checkpoint="tiny",
    vae=None,
    model_sha256="",
    vae_sha256=None,
    data=DATA,
    split="held_out",
    clips=5,
    first_clip=3,
    every=2,
    clips_sha256="",
    frames=4,
    height=16,
    width=16,
    channels=1,
    crop="none",
    stride=None,
    clips_per_video="1",
    tasks=["predict"],
    num_given=1,
    told_labels=[],
    guidance=None,
    positions="generated",
    fvd_frames="all",
    samples_per_clip=2,
    sampler="ddpm",
    steps=2,
    seed=0,
    metrics=["psnr", "ssim", "motion"],
    networks={},
    versions={},
)
NUMBERS = range(3, 13, 2)


@pytest.fixture(scope="module")
def loaded():
    params = NETWORK.init(jax.random.key(0), jnp.zeros((1, *NETWORK.video_shape)), jnp.zeros(1))["params"]
    # The last layer begins as 0, and samples of a network that says 0 are all alike.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    config = {"diffusion": {"noise_schedule": "cosine", "prediction": "x_start", "clip_denoised": True}}
    return LoadedModel(NETWORK, params, config)


def evaluation(loaded, folder, batch_size=8, num_devices=8, features=None, **changes):
    protocol = dataclasses.replace(PROTOCOL, **changes)
    mesh = make_mesh(num_devices)
    measures = make_measures(protocol.metrics, "alexnet", mesh)._replace(features=features or {})
    return Evaluation(protocol, loaded, loaded.diffusion(2), SOURCE, measures, folder, batch_size)


@pytest.fixture(scope="module")
def result(loaded, tmp_path_factory):
    return evaluation(loaded, tmp_path_factory.mktemp("parts")).task("predict", lambda count: None)


def test_its_numbers_are_those_of_its_samples(loaded, result, tmp_path):
    summary, ranking = result
    again = evaluation(loaded, tmp_path)
    drawn = [again.sample([*NUMBERS, 0, 0, 0], "predict", seed) for seed in (0, 1)]
    scores = np.stack([psnr(samples[:5], truth[:5], mask[:5]) for samples, truth, mask in drawn], axis=1)
    np.testing.assert_allclose(ranking, scores[:, 0], rtol=1e-5)
    np.testing.assert_allclose(summary[MODEL]["PSNR"], scores.mean(), rtol=1e-5)
    np.testing.assert_allclose(summary[MODEL]["best PSNR"], scores.max(1).mean(), rtol=1e-5)
    assert summary[MODEL]["best PSNR"] > summary[MODEL]["PSNR"]
    np.testing.assert_array_equal(drawn[0][1][:5], take(SOURCE, NUMBERS)["video"])
    assert summary["copy nearest"]["motion"] == 0 and summary["copy nearest"]["PSNR"] > 0


@pytest.mark.parametrize(("batch_size", "num_devices"), [(2, 1), (5, 1)])
def test_batches_and_devices_do_not_matter(loaded, result, tmp_path, batch_size, num_devices):
    summary, ranking = evaluation(loaded, tmp_path, batch_size, num_devices).task("predict", lambda count: None)
    np.testing.assert_allclose(ranking, result[1], rtol=1e-4)
    for what, row in summary.items():
        np.testing.assert_allclose(list(row.values()), list(result[0][what].values()), rtol=1e-4, atol=1e-7)


def test_a_folder_that_other_batches_began_gives_the_same(loaded, result, tmp_path):
    for batch_size in (2, 4, 8):
        _, ranking = evaluation(loaded, tmp_path, batch_size, 1).task("predict", lambda count: None)
        np.testing.assert_allclose(ranking, result[1], rtol=1e-4)


def test_frames_of_fvd(loaded, tmp_path):
    frame_means = {"frame Frechet": lambda video: video.mean((2, 3, 4))}
    made = evaluation(loaded, tmp_path, features=frame_means, fvd_frames="generated")
    assert made.fvd_frames("predict") == (1, 2, 3)
    assert made.fvd_frames("arbitrary_interpolation") is None  # clips differ
    summary, _ = made.task("arbitrary_interpolation", lambda count: None)
    assert "frame Frechet" not in summary[MODEL] and "PSNR" in summary[MODEL]
    with pytest.raises(UserError, match="FVD needs at least 9 frames, predict generates 3"):
        evaluation(loaded, tmp_path, features={"FVD": None}, fvd_frames="generated").fvd_frames("predict")


@pytest.mark.parametrize(("every", "others"), [(2, range(4, 14, 2)), (1, range(8, 13))])
def test_the_truth_beside_other_truth(loaded, tmp_path, every, others):
    features = {"FVD": lambda video: video.mean((3, 4))[..., :2].reshape(len(video), -1)}
    against_others, itself = evaluation(loaded, tmp_path, 2, 1, features, every=every).floor()
    clips, other = (take(SOURCE, n)["video"] for n in (range(3, 3 + 5 * every, every), others))
    assert against_others == {"FVD": pytest.approx(frechet_distance(features["FVD"](clips), features["FVD"](other)))}
    assert against_others["FVD"] > 1e-3 > abs(itself["FVD"])
    near_the_end = evaluation(loaded, tmp_path / "end", 2, 1, features, first_clip=len(SOURCE) - 10)
    assert near_the_end.floor()[0].keys() == {"FVD"}  # from half-way between them
    at_the_end = evaluation(loaded, tmp_path / "other", 2, 1, features, every=1, first_clip=len(SOURCE) - 5).floor()
    assert at_the_end[0] == {} and at_the_end[1].keys() == {"FVD"}


def test_classes_are_told_in_the_tasks_named_alone(loaded, tmp_path):
    untold = evaluation(loaded, tmp_path)
    told = evaluation(loaded, tmp_path, told_labels=["backward"])
    guided = evaluation(loaded, tmp_path, told_labels=["backward"], guidance=3.0)
    for task, differing in (("predict", 1), ("backward", 3)):
        samples = [each.sample(range(8), task, 0)[0] for each in (untold, told, guided)]
        assert len({video.tobytes() for video in samples}) == differing


def test_work_that_was_killed_goes_on_where_it_was(loaded, result, tmp_path, monkeypatch):
    done = []

    def killed_after_two(count):
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation(loaded, tmp_path, 2, 1).task("predict", killed_after_two)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["predict_0_2.npz", "predict_2_2.npz"]
    (tmp_path / "predict_4_1.tmp.npz").write_bytes(b"half-written")
    measured = []
    real = Evaluation._measure
    monkeypatch.setattr(
        Evaluation, "_measure", lambda self, task, first: measured.append(first) or real(self, task, first)
    )
    summary, _ = evaluation(loaded, tmp_path, 2, 1).task("predict", lambda count: None)
    assert measured == [4]
    np.testing.assert_allclose(summary[MODEL]["SSIM"], result[0][MODEL]["SSIM"], rtol=1e-4)


def test_where_nothing_is_given_there_are_no_baselines(loaded, tmp_path):
    summary, _ = evaluation(loaded, tmp_path, samples_per_clip=1, metrics=["psnr"]).task(
        "unconditional", lambda n: None
    )
    assert list(summary) == [MODEL] and list(summary[MODEL]) == ["PSNR"]


def test_summary_written_out():
    measures = make_measures(["psnr"], "alexnet", make_mesh())._replace(features={"FVD": lambda video: video})
    arrays = {
        "model/LPIPS": np.array([[0.1, 0.3], [0.5, 0.2]]),
        "model/FVD": np.array([[[0.0, 1], [4, 1]], [[2, 1], [6, 1]]]),  # two clips, two samples of each
        "truth/FVD": np.array([[3.0, 1], [5, 1]]),
        "model/motion": np.array([[1.0], [2.0]]),
        "truth/motion": np.array([3.0, 3.0]),
    }
    # Means 1 and 4 at equal spread; then 3 and 4, and variances 20 / 3 and 2 of all four and of the two.
    pooled = 1 + 20 / 3 + 2 - 2 * (40 / 3) ** 0.5
    expected = {"LPIPS": 0.275, "best LPIPS": 0.15, "FVD": 9.0, "FVD of all samples": pooled, "motion": 0.5}
    assert summarise(arrays, measures)["model"] == pytest.approx(expected)


def test_best_and_worst():
    assert best_and_worst(np.array([3.0, 1.0, 2.0, 5.0]), 1) == [(1, "worst"), (3, "best")]
    assert best_and_worst(np.array([3.0, 1.0, 2.0]), 5) == [(1, "worst"), (2, "worst"), (0, "best")]
    assert best_and_worst(np.array([3.0]), 2) == [(0, "worst")]


def test_the_protocol_says_all_and_is_plain_json():
    lines = PROTOCOL.lines()
    assert len(lines) == len(dataclasses.fields(Protocol))
    assert "first clip: 3" in lines and "metrics: psnr, ssim, motion" in lines and "vae: none" in lines
    assert Protocol(**json.loads(json.dumps(dataclasses.asdict(PROTOCOL)))) == PROTOCOL


def test_presets():
    assert find_preset("latte-sky", 16, (256, 256)).flags["stride"] == 3
    with pytest.raises(UserError, match=r"measures 15 frames of 64x64, this model makes 16 of 32x32"):
        find_preset("mcvd-smmnist", 16, (32, 32))
    with pytest.raises(UserError, match="vdt-cityscapes"):
        find_preset("vdt-citiscapes", 30, (128, 128))
    assert all(preset.note for preset in PRESETS.values())


def test_an_unknown_metric():
    with pytest.raises(UserError, match="no metric 'fid'"):
        make_measures(["psnr", "fid"], "alexnet", make_mesh())


def test_what_cannot_be_measured_is_told(tmp_path):
    names, missing = available_metrics("alexnet", str(tmp_path), (16, 64, 64, 3))
    assert names == ["psnr", "ssim", "motion"] and "pip install" in missing["lpips"] and "pip install" in missing["fvd"]
    _, missing = available_metrics("alexnet", str(tmp_path), (8, 16, 16, 1))
    assert "9 frames" in missing["fvd"] and "31 pixels" in missing["lpips"]


def test_which_clips():
    assert list(chosen_clips(10, 3)) == [0, 1, 2] and list(chosen_clips(10, 99, 8)) == [8, 9]
    assert list(chosen_clips(10, 3, 1, 4)) == [1, 5, 9] and list(chosen_clips(10, 3, 2, 5)) == [2, 7]
    assert list(chosen_clips(10, 3, every=None)) == [0, 3, 6] and list(chosen_clips(10, 4, 7, None)) == [7, 8, 9]
    with pytest.raises(UserError, match="first_clip=10 is past the end: the split has 10 clips"):
        chosen_clips(10, 1, 10)
