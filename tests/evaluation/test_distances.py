"""Frechet distances, motion, flow, batches over devices, and video convolution, each against what is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vdt_jax.distributed.mesh import make_mesh
from vdt_jax.evaluation.metrics.baselines import FLOW, baselines, copy_nearest, flow_blend, linear_blend
from vdt_jax.evaluation.metrics.frames import motion, motion_error, psnr
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.metrics.i3d import Conv3D, max_pool
from vdt_jax.evaluation.metrics.perceptual import over_batches

RNG = np.random.default_rng(0)


def test_frechet_distance_of_gaussians_with_known_moments():
    """With commuting covariances it is |m1 - m2|^2 + sum (s1 - s2)^2, s the deviations along the common axes."""
    rotation = np.linalg.qr(RNG.standard_normal((5, 5)))[0]

    def sample(mean, deviations):
        """A set with exactly these moments."""
        x = RNG.standard_normal((40, 5))
        x -= x.mean(0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
        return (x * deviations) @ rotation.T + mean

    mean, deviations = RNG.standard_normal(5), np.array([0.1, 1, 2, 3, 0])
    others = np.array([0.5, 1, 1, 4, 2])
    distance = frechet_distance(sample(mean, deviations), sample(0, others))
    np.testing.assert_allclose(distance, mean @ mean + ((deviations - others) ** 2).sum(), rtol=1e-10)


def test_frechet_distance_to_itself_is_nothing_also_with_fewer_samples_than_dimensions():
    features = 30 * RNG.standard_normal((20, 80)) + 100
    assert abs(frechet_distance(features, features)) < 1e-12 * np.cov(features, rowvar=False).trace() * 80
    assert abs(frechet_distance(features, features[::-1])) < 1e-12 * np.cov(features, rowvar=False).trace() * 80


def test_frechet_distance_is_symmetric_and_grows_with_noise():
    features, other = RNG.standard_normal((64, 12)), RNG.standard_normal((64, 12))
    np.testing.assert_allclose(frechet_distance(features, other), frechet_distance(other, features), rtol=1e-9)
    noise = RNG.standard_normal(features.shape)
    distances = [frechet_distance(features, features + scale * noise) for scale in (0, 0.3, 1, 3)]
    assert distances == sorted(distances) and distances[1] > 0.01


@pytest.mark.parametrize("batch_size", [3, 8, 32])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_rows_do_not_depend_on_batches_and_devices(batch_size, num_devices):
    def function(params, x, y):
        return jnp.tanh(x @ params) + y

    params, x, y = (RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (13, 6), (13, 4)))
    apply = over_batches(function, params, make_mesh(num_devices), batch_size)
    np.testing.assert_allclose(apply(x, y), np.tanh(x @ params) + y, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "window", "strides"),
    [
        ((2, 5, 9, 8, 3), (7, 7, 7), (2, 2, 2)),
        ((1, 4, 6, 7, 2), (3, 3, 3), (1, 1, 1)),
        ((1, 3, 4, 4, 2), (1, 1, 1), (1, 1, 1)),
    ],
)
def test_convolution_of_video_is_that_of_xla(shape, window, strides):
    x = RNG.standard_normal(shape).astype(np.float32)
    module = Conv3D(4, window, strides)
    kernel = RNG.standard_normal((*window, shape[-1], 4)).astype(np.float32) / 8
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.arange(4.0)}
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    expected = np.asarray(lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers))
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), expected + np.arange(4.0), atol=1e-5)


@pytest.mark.parametrize(
    ("window", "strides"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((2, 2, 2), (2, 2, 2))],
)
def test_pooling_of_video_is_that_of_xla(window, strides):
    x = RNG.standard_normal((2, 5, 8, 7, 3)).astype(np.float32)
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), "SAME")
    np.testing.assert_array_equal(jax.jit(max_pool, static_argnums=(1, 2))(x, window, strides), expected)


def moving_square(position):
    """(1, F, 32, 32, 1): a soft square whose left edge is at these columns."""
    columns = np.arange(32)
    video = np.zeros((1, len(position), 32, 32, 1), np.float32) - 1
    for frame, left in zip(video[0], position, strict=True):
        profile = np.clip(np.minimum(columns - left, left + 10 - columns) / 2, 0, 1)
        frame[10:20, :, 0] = 2 * profile - 1
    return video


def test_motion():
    still, moving = moving_square([8] * 5), moving_square([4, 6, 8, 10, 12])
    mask = np.ones((1, 5, 32, 32, 1), np.float32)
    assert motion(still, mask) == 0 and motion(moving, mask) > 0.01
    assert motion_error(moving, moving, mask) == 0
    np.testing.assert_allclose(motion_error(still, moving, mask), motion(moving, mask), rtol=1e-6)


def test_motion_counts_changes_that_touch_what_is_generated():
    mask = np.zeros((1, 5, 32, 32, 1), np.float32)
    mask[:, 4] = 1
    jump = moving_square([4, 14, 8, 8, 8])  # moves among given frames alone
    assert motion(jump, mask) == 0


@pytest.mark.skipif(FLOW not in baselines(1), reason="needs the extra `eval`")
def test_optical_flow_finds_the_square_between():
    truth = moving_square([8, 9, 10, 11, 12, 13])
    mask = np.array([0, 1, 1, 1, 0, 1], np.float32).reshape(1, 6, 1, 1, 1) * np.ones((1, 6, 32, 32, 1), np.float32)
    by_flow, blended = flow_blend(truth, mask), linear_blend(truth, mask)
    between = mask * (np.arange(6) < 4).reshape(1, 6, 1, 1, 1)
    assert psnr(by_flow, truth, between) > psnr(blended, truth, between) + 3
    np.testing.assert_array_equal(by_flow[:, 5], copy_nearest(truth, mask)[:, 5])  # beyond the last given frame
    np.testing.assert_array_equal(by_flow[:, [0, 4]], truth[:, [0, 4]])
