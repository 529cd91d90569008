"""Validation during training: a number for each task and quartile, the same each time, and lower for a better model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.data import make_source, take
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.inference.functional import task_masks
from vdt_jax.models.vdt import VDT
from vdt_jax.training.validation import make_validation

MODEL = VDT(
    input_size=(16, 16),
    num_frames=4,
    in_channels=1,
    patch_size=8,
    hidden_size=16,
    depth=1,
    num_heads=2,
    learn_sigma=False,
)
OPTIONS = dict(noise_schedule="cosine", prediction="x_start", clip_denoised=True)
SOURCE = make_source({"name": "moving_digits", "num_digits": 1}, MODEL.video_shape, "held_out")


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, *MODEL.video_shape)), jnp.zeros(1))["params"]


@pytest.fixture(scope="module")
def values(params):
    validate = make_validation(MODEL, OPTIONS, SOURCE, num_clips=8, num_steps=2)
    values = validate(params)
    assert validate(params) == values
    return values


def test_names(values):
    expected = {f"validation/{task}" for task in TASKS} | {f"validation/quartile {i}" for i in (1, 2, 3, 4)}
    expected |= {f"evaluation/{task} {metric}" for task in TASKS for metric in ("PSNR", "SSIM")}
    assert values.keys() == expected and np.isfinite(list(values.values())).all()


def test_the_untrained_model_has_the_loss_of_grey(values):
    """Its output is 0 everywhere, and x_start is what it should be: the mean square where the mask is 1."""
    clean = take(SOURCE, range(8))["video"]
    mask = np.asarray(task_masks(0, range(8), "predict", MODEL))
    expected = np.mean([(c[m[..., 0] > 0.5] ** 2).mean() for c, m in zip(clean, mask, strict=True)])
    np.testing.assert_allclose(values["validation/predict"], expected, rtol=1e-5)
    quartiles = [values[f"validation/quartile {i}"] for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(quartiles, quartiles[0], rtol=1e-5)


@pytest.mark.slow
def test_quartile_1_has_the_least_noise(params, monkeypatch):
    """A network that hands back its input is right where there is no noise."""
    monkeypatch.setattr(VDT, "apply", lambda self, variables, x, timesteps, labels: x)
    other = VDT(
        **{
            **{name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__ if name not in ("parent", "name")},
            "unroll": 2,
        }
    )
    validate = make_validation(other, OPTIONS, SOURCE, num_clips=3, num_steps=1)
    values = validate(params)
    quartiles = [values[f"validation/quartile {i}"] for i in (1, 2, 3, 4)]
    assert quartiles == sorted(quartiles) and quartiles[3] > 3 * quartiles[0]
