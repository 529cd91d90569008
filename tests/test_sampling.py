"""The sampler beyond the goldens: given positions, independence of the batch, and that it samples the right thing."""

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion import make_diffusion
from vdt_jax.sampling import ddpm, sample_noise

SHAPE = (4, 2, 2, 3, 1)


def exact_denoiser(diffusion, mean=0.3, std=0.2):
    """What the best network says about data that are N(mean, std^2) at each position."""
    alpha_bar = jnp.asarray(diffusion.schedule.alphas_cumprod, jnp.float32)

    def denoise_fn(x_t, timesteps):
        a = alpha_bar[jnp.searchsorted(jnp.asarray(diffusion.schedule.timestep_map), timesteps)]
        a = a[:, None, None, None, None]
        gain = jnp.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        x_start = mean + gain * (x_t - jnp.sqrt(a) * mean)
        return (x_t - jnp.sqrt(a) * x_start) / jnp.sqrt(1 - a)

    return denoise_fn


def test_ddpm_samples_the_distribution_that_its_network_knows():
    diffusion = make_diffusion(learn_sigma=False)
    shape = (2000, 1, 2, 2, 1)
    samples = ddpm(
        diffusion,
        exact_denoiser(diffusion),
        jax.random.split(jax.random.key(0), shape[0]),
        jnp.zeros(shape),
        jnp.ones(shape),
    )
    assert abs(float(samples.mean()) - 0.3) < 0.01
    assert abs(float(samples.std()) - 0.2) < 0.01


def test_given_positions_come_out_bit_equal_even_where_the_network_explodes():
    diffusion = make_diffusion(timestep_respacing="5")
    clean = jax.random.normal(jax.random.key(1), SHAPE)
    mask = jnp.zeros(SHAPE).at[:, 1:, :, 1:].set(1)

    def denoise_fn(x_t, timesteps):
        exploding = jnp.where(mask > 0.5, 0.1, jnp.inf)
        return jnp.concatenate([exploding, exploding], -1)

    out = ddpm(diffusion, denoise_fn, jax.random.split(jax.random.key(0), 4), clean, mask)
    np.testing.assert_array_equal(np.asarray(out)[np.asarray(mask) < 0.5], np.asarray(clean)[np.asarray(mask) < 0.5])
    assert np.isfinite(out).all()


def test_a_sample_does_not_depend_on_its_batch():
    diffusion = make_diffusion(timestep_respacing="8", learn_sigma=False)
    denoise_fn, keys = exact_denoiser(diffusion), jax.random.split(jax.random.key(0), 4)
    clean, mask = jnp.zeros(SHAPE), jnp.ones(SHAPE)
    together = ddpm(diffusion, denoise_fn, keys, clean, mask)
    alone = ddpm(diffusion, denoise_fn, keys[2:3], clean[2:3], mask[2:3])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_clipping_holds_samples_in_range():
    shape = (4, 1, 2, 2, 1)
    for clip in (False, True):
        diffusion = make_diffusion(timestep_respacing="8", learn_sigma=False, clip_denoised=clip)
        keys = jax.random.split(jax.random.key(0), 4)
        out = ddpm(diffusion, exact_denoiser(diffusion, mean=3.0), keys, jnp.zeros(shape), jnp.ones(shape))
        assert (np.abs(out).max() <= 1) == clip


def test_noise_streams_are_normal_and_apart():
    noise = np.asarray(sample_noise(jax.random.split(jax.random.key(0), 50), (10, 20)))
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert np.abs(noise[0] - noise[1]).max() > 0.1
