"""PSNR and SSIM against scikit-image; baselines written out."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vdt_jax.evaluation.metrics.baselines import copy_nearest, linear_blend
from vdt_jax.evaluation.metrics.frames import psnr, psnr_of_frames, ssim


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    truth = np.cumsum(np.cumsum(rng.standard_normal((2, 3, 32, 24, 2)), 2), 3)
    truth = np.clip(truth / np.abs(truth).max(), -1, 1).astype(np.float32)
    return np.clip(truth + 0.1 * rng.standard_normal(truth.shape), -1, 1).astype(np.float32), truth


def test_psnr_is_that_of_scikit_image(pair):
    sample, truth = pair
    ours = psnr(sample, truth, jnp.ones((2, 3, 32, 24, 1)))
    expected = [peak_signal_noise_ratio(t, s, data_range=2) for s, t in zip(sample, truth, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_ssim_is_that_of_scikit_image(pair):
    sample, truth = pair
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=-1)
    maps = [
        structural_similarity((t + 1) / 2, (s + 1) / 2, full=True, **options)[1]
        for s, t in zip(sample.reshape(6, 32, 24, 2), truth.reshape(6, 32, 24, 2), strict=True)
    ]
    expected = np.stack(maps).reshape(2, -1).mean(1)  # the full map: scikit-image's own mean leaves out the borders
    np.testing.assert_allclose(ssim(sample, truth, jnp.ones((2, 3, 32, 24, 1))), expected, rtol=1e-4)


def test_psnr_of_frames_is_averaged_over_the_frames_with_something_generated(pair):
    sample, truth = pair
    mask = np.ones((2, 3, 32, 24, 1), np.float32)
    mask[:, 0] = 0
    by_frame = [
        [peak_signal_noise_ratio(t, s, data_range=2) for s, t in zip(sample[clip, 1:], truth[clip, 1:], strict=True)]
        for clip in range(2)
    ]
    np.testing.assert_allclose(psnr_of_frames(sample, truth, mask), np.mean(by_frame, axis=1), rtol=1e-5)


def test_ssim_without_the_border_is_scikit_images_own_mean(pair):
    sample, truth = pair
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=-1)
    frames = zip(sample.reshape(6, 32, 24, 2), truth.reshape(6, 32, 24, 2), strict=True)
    expected = [structural_similarity((t + 1) / 2, (s + 1) / 2, **options) for s, t in frames]
    ours = ssim(sample, truth, jnp.ones((2, 3, 32, 24, 1)), border=5)
    np.testing.assert_allclose(ours, np.reshape(expected, (2, 3)).mean(1), rtol=1e-4)


def test_only_generated_positions_count(pair):
    sample, truth = pair
    mask = np.zeros((2, 3, 32, 24, 1), np.float32)
    mask[:, 1, :16] = 1
    spoiled = np.where(mask > 0.5, sample, 5.0)
    np.testing.assert_allclose(psnr(spoiled, truth, mask), psnr(sample, truth, mask), rtol=1e-6)
    assert (psnr(truth, truth, mask) == 100).all() and np.allclose(ssim(truth, truth, mask), 1)


def pixels(values):
    """A video of one pixel."""
    return np.array(values, np.float32).reshape(1, -1, 1, 1, 1)


def test_baselines_written_out():
    truth, mask = pixels([1, 9, 9, 9, 5, 9, 9]), pixels([0, 1, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(copy_nearest(truth, mask).ravel(), [1, 1, 1, 5, 5, 5, 5])
    np.testing.assert_array_equal(linear_blend(truth, mask).ravel(), [1, 2, 3, 4, 5, 5, 5])


def test_baselines_before_the_first_and_without_any_given_frame():
    truth = pixels([9, 9, 4, 9])
    np.testing.assert_array_equal(linear_blend(truth, pixels([1, 1, 0, 1])).ravel(), [4, 4, 4, 4])
    np.testing.assert_array_equal(copy_nearest(truth, pixels([1, 1, 1, 1])).ravel(), [0, 0, 0, 0])


def test_baselines_work_position_by_position():
    truth = np.stack([pixels([1, 9, 3])[0], pixels([5, 9, 7])[0]], 2)  # (F, 1, 2, 1, 1)
    truth = truth.reshape(1, 3, 1, 2, 1)
    mask = np.array([[0, 0], [1, 0], [0, 1]], np.float32).reshape(1, 3, 1, 2, 1)
    np.testing.assert_array_equal(linear_blend(truth, mask).reshape(3, 2), [[1, 5], [2, 9], [3, 9]])
