"""Validation during training: a number for each task and quartile, the same each time, and lower for a better model."""

import copy
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vdt_jax.data import take
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.inference.functional import task_masks
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.models import flops
from vdt_jax.models.flops import training_flops
from vdt_jax.models.vdt import VDT
from vdt_jax.options import build
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.run import Run
from vdt_jax.training.validation import Validation

SIZES = dict(input_size=(16, 16), num_frames=4, in_channels=1, patch_size=8, hidden_size=16, depth=1, num_heads=2)
CONFIG = build(
    TrainConfig,
    {
        "batch_size": 8,
        "model": SIZES | {"learn_sigma": False, "remat": "none"},
        "diffusion": {"noise_schedule": "cosine", "prediction": "x_start", "clip_denoised": True},
        "data": {"name": "moving_digits", "num_digits": 1},
        "validation": {"every": 4, "num_steps": 2, "num_clips": 8},
        "preview": {"every": 6, "num_steps": 3, "num_clips": 2},
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(CONFIG, tmp_path_factory.mktemp("run"))


def test_a_run_knows_its_share_of_the_devices_peak(run, monkeypatch):
    assert run.utilisation(2.0) is None  # the peak of a CPU is not known
    monkeypatch.setitem(flops.PEAK_FLOPS, "cpu", 1e9)
    per_step = training_flops(run.model) * CONFIG.batch_size
    assert run.utilisation(2.0) == pytest.approx(2.0 * per_step / 1e9 / run.mesh.size)


@pytest.fixture(scope="module")
def params(run):
    return jax.jit(run.model.init)(jax.random.key(0), jnp.zeros((1, *run.model.video_shape)), jnp.zeros(1))["params"]


@pytest.fixture(scope="module")
def values(run, params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    validate = Validation(run, folder)
    values = validate(params, 4)
    assert validate(params, 12, pictures=True) == values
    assert len(list(folder.glob("step_0000012/*"))) == 2 * 2 * len(TASKS)
    return values


def test_names(values):
    expected = {f"validation/{task}" for task in TASKS} | {f"validation/quartile {i}" for i in (1, 2, 3, 4)}
    expected |= {f"evaluation/{task} {metric}" for task in TASKS for metric in ("PSNR", "SSIM")}
    assert values.keys() == expected and np.isfinite(list(values.values())).all()


def test_the_untrained_model_has_the_loss_of_grey(run, values):
    """Its output is 0 everywhere, and x_start is what it should be: the mean square where the mask is 1."""
    clean = take(run.held_out, range(8))["video"]
    mask = np.asarray(task_masks(0, range(8), "predict", run.model))
    expected = np.mean([(c[m[..., 0] > 0.5] ** 2).mean() for c, m in zip(clean, mask, strict=True)])
    np.testing.assert_allclose(values["validation/predict"], expected, rtol=1e-5)
    quartiles = [values[f"validation/quartile {i}"] for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(quartiles, quartiles[0], rtol=1e-5)


@pytest.mark.slow
def test_quartile_1_has_the_least_noise(params, monkeypatch, tmp_path):
    """A network that hands back its input is right where there is no noise."""
    monkeypatch.setattr(VDT, "apply", lambda self, variables, x, timesteps, labels: x)
    other = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, unroll=2),
        validation=dataclasses.replace(CONFIG.validation, num_clips=3, num_steps=1),
    )
    values = Validation(Run(other, tmp_path), tmp_path)(params, 1)
    quartiles = [values[f"validation/quartile {i}"] for i in (1, 2, 3, 4)]
    assert quartiles == sorted(quartiles) and quartiles[3] > 3 * quartiles[0]


@pytest.fixture
def sampled(monkeypatch):
    """What `Pipeline.complete` was asked for, (clips, steps) for each task; the samples are black."""
    calls = []

    def complete(self, clips, mask, keys, *, diffusion, labels):
        calls.append((len(clips), len(diffusion.schedule)))
        return np.full_like(clips, -1.0), np.ones_like(clips)

    monkeypatch.setattr(Pipeline, "complete", complete)
    return calls


def test_when_metrics_and_pictures_are_due(run, tmp_path):
    validation = Validation(run, tmp_path)
    assert [step for step in range(1, 14) if validation.metrics_due(step)] == [4, 8, 12]
    assert [step for step in range(1, 14) if validation.pictures_due(step, 13)] == [6, 12, 13]
    never = copy.copy(run)
    never.config = dataclasses.replace(CONFIG, preview=dataclasses.replace(CONFIG.preview, every=0))
    assert not Validation(never, tmp_path).pictures_due(13, 13)


def test_metrics_and_pictures_share_their_samples(run, params, sampled, tmp_path):
    validate = Validation(run, tmp_path)
    both = validate(params, 12, pictures=True)
    assert sampled == [(8, 2)] * len(TASKS)
    assert len(list(tmp_path.glob("step_0000012/*.png"))) == 2 * len(TASKS)
    picture = np.asarray(Image.open(tmp_path / "step_0000012" / "predict_0.png"))[2:-2]  # without its border
    _, sample, shown_truth = np.split(picture, 3)
    assert set(np.unique(sample)) == {0, 255} and len(np.unique(shown_truth)) > 2  # 255 between the frames
    truth = take(run.held_out, range(8))["video"]
    mse = ((truth + 1) ** 2).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(both["evaluation/predict PSNR"], (10 * np.log10(4 / mse)).mean(), rtol=1e-4)
    sampled.clear()
    assert validate(params, 6, metrics=False, pictures=True) == {}
    assert sampled == [(2, 3)] * len(TASKS)


def test_an_interruption_ends_it_between_two_tasks(run, params, sampled, tmp_path):
    logged = []
    log = types.SimpleNamespace(pictures=lambda step, folder: logged.append((step, len(list(folder.glob("*.gif"))))))
    assert Validation(run, tmp_path, log, stop=lambda: len(sampled) == 3)(params, 4, pictures=True) == {}
    assert len(sampled) == 3 and len(list(tmp_path.glob("step_0000004/*.gif"))) == 6
    assert logged == [(4, 6)]


def test_nothing_is_logged_where_no_task_is_sampled(run, params, sampled, tmp_path):
    log = types.SimpleNamespace(pictures=lambda step, folder: pytest.fail("there are no pictures"))
    assert Validation(run, tmp_path, log, stop=lambda: True)(params, 4, pictures=True) == {}
    assert len(Validation(run, tmp_path, log)(params, 4)) == 7 + 4 + 2 * 7  # metrics alone
