"""The bundled demo checkpoint: it has learned, and gives the same samples everywhere."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from glyphs import digits_shown

from vdt_jax.data import take
from vdt_jax.evaluation.metrics.baselines import copy_nearest, linear_blend
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.pipeline import Pipeline

GOLDEN = Path(__file__).parents[1] / "goldens" / "demo_sample.npz"


@pytest.fixture(scope="module")
def demo():
    pipe = Pipeline.load("demo")
    return pipe, pipe.source()


def sample(demo, task, numbers, told=False):
    pipe, source = demo
    clips = take(source, numbers)
    labels = clips["labels"] if told else None
    mask, keys = pipe.task_masks(task, numbers), sample_keys(0, numbers)
    video, mask = pipe.complete(clips["video"], mask, keys, diffusion=pipe.diffusion(25), labels=labels)
    return video, clips["video"], mask


@pytest.mark.parametrize(
    ("task", "baseline", "margin"), [("interpolation", linear_blend, 7.0), ("predict", copy_nearest, 4.0)]
)
def test_it_beats_what_can_be_done_without_a_model(demo, task, baseline, margin):
    video, clean, mask = sample(demo, task, range(8))
    simple = baseline(clean, mask)
    gain = float(np.mean(psnr(video, clean, mask) - psnr(simple, clean, mask)))
    print(f"{task}: {gain:.2f} dB over {baseline.__name__}")
    assert gain > margin
    assert np.mean(ssim(video, clean, mask)) > np.mean(ssim(simple, clean, mask))
    shown = np.stack([digits_shown(jnp.asarray(clip)) for clip in video])
    assert (shown == take(demo[1], range(8))["labels"][:, None]).all()  # no frame shows another digit


def test_a_digit_that_it_is_told_stays_that_digit(demo):
    video, _, _ = sample(demo, "unconditional", range(8), told=True)
    shown = np.stack([digits_shown(jnp.asarray(clip)) for clip in video])
    right = np.mean(shown == take(demo[1], range(8))["labels"][:, None])
    print(f"{right:.0%} of the frames show the digit of their class")
    assert right > 0.9
    unsaid, _, _ = sample(demo, "unconditional", range(8))
    assert np.mean([digits_shown(jnp.asarray(clip)) for clip in unsaid] == shown) < 0.5


def test_its_samples_are_the_same_everywhere(demo):
    """The golden was made with Python 3.11 and jax 0.10.2."""
    video, _, _ = sample(demo, "unconditional", range(1, 9))
    np.testing.assert_allclose(video[0], np.load(GOLDEN)["video"], atol=2e-3)


def test_its_provenance_is_told(demo):
    assert {"steps", "hardware", "hours", "commit", "jax", "metrics"} <= set(demo[0].config["provenance"])
