"""The model that ships: it has learned, and gives the same samples everywhere."""

from pathlib import Path

import numpy as np
import pytest

from vdt_jax.data import make_source, take
from vdt_jax.generation import generate, load, sample_keys, task_masks
from vdt_jax.metrics.baselines import copy_nearest, linear_blend
from vdt_jax.metrics.frames import psnr, ssim

GOLDEN = Path(__file__).parent / "goldens" / "demo_sample.npz"


@pytest.fixture(scope="module")
def demo():
    loaded = load("demo")
    source = make_source(loaded.config["data"], loaded.model.video_shape, "held_out")
    return loaded, loaded.diffusion(25), source


def sample(demo, task, numbers):
    loaded, diffusion, source = demo
    clean = take(source, numbers)["video"]
    mask = np.asarray(task_masks(0, numbers, task, loaded.model))
    return (
        np.asarray(generate(loaded.model, loaded.params, diffusion, clean, mask, sample_keys(0, numbers))),
        clean,
        mask,
    )


@pytest.mark.parametrize(
    ("task", "baseline", "margin"), [("interpolation", linear_blend, 1.5), ("predict", copy_nearest, 1.0)]
)
def test_it_beats_what_can_be_done_without_a_model(demo, task, baseline, margin):
    video, clean, mask = sample(demo, task, range(8))
    simple = baseline(clean, mask)
    gain = float(np.mean(psnr(video, clean, mask) - psnr(simple, clean, mask)))
    print(f"{task}: {gain:.2f} dB over {baseline.__name__}")
    assert gain > margin
    assert np.mean(ssim(video, clean, mask)) > np.mean(ssim(simple, clean, mask))


def test_its_samples_are_the_same_everywhere(demo):
    """The golden was made with Python 3.11 and jax 0.10.2."""
    video, _, _ = sample(demo, "unconditional", range(1, 9))
    np.testing.assert_allclose(video[0], np.load(GOLDEN)["video"], atol=2e-3)


def test_its_provenance_is_told(demo):
    assert {"steps", "hardware", "hours", "commit", "jax", "metrics"} <= set(demo[0].config["provenance"])
