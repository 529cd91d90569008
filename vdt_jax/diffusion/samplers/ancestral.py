"""Samplers that forget: each step looks at the newest network output alone.

Throughout, alpha-bar is the respaced schedule's, t counts its steps, and alpha-bar_{-1} = 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import apply_mask
from vdt_jax.diffusion.samplers.loop import Sampling, denoise, sample_noise, start_noise, step_keys


def ddpm(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    *,
    start: jax.Array | None = None,
    noises: jax.Array | None = None,
) -> Sampling:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, arXiv 2006.11239), with masks.

        x_T ~ N(0, I)
        for t = T-1, ..., 0:  x_{t-1} = mean(x_t) + exp(log_variance(x_t) / 2) z,  z ~ N(0, I) for t > 0, else 0

    Args:
      diffusion: the respaced process; its length is the number of network calls.
      denoise_fn: (x_t, timesteps) -> model_output.
      keys: (B,) one key a sample.
      clean: (B, F, h, w, C), read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      start: x_T in place of a drawn one, (B, F, h, w, C).
      noises: z of each step in place of drawn ones, (T, B, F, h, w, C), the noisiest step first.

    Returns:
      The sampling, whose x (B, F, h, w, C) equals `clean` where mask = 0.
    """
    num_steps, shape = len(diffusion.schedule), clean.shape[1:]
    if start is None:
        start = start_noise(keys, shape)

    def step(i, state):
        (x_t,), t = state, num_steps - 1 - i
        out = denoise(diffusion, denoise_fn, x_t, t)
        z = sample_noise(step_keys(keys, t), shape) if noises is None else noises[i]
        x_t = out.mean + jnp.where(t > 0, jnp.exp(0.5 * out.log_variance) * z, 0.0)
        return (apply_mask(mask, x_t, clean),)

    return Sampling(num_steps, (apply_mask(mask, start, clean),), step)


def ddim(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    *,
    eta: jax.Array | float = 0.0,
    start: jax.Array | None = None,
) -> Sampling:
    """Implicit sampling (Song et al. 2021, eq. 12 and 16, arXiv 2010.02502), with masks.

        eps = (x_t - sqrt(alpha-bar_t) x_0) / sqrt(1 - alpha-bar_t),  x_0 the network's estimate
        sigma_t = eta sqrt((1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)) sqrt(1 - alpha-bar_t / alpha-bar_{t-1})
        x_{t-1} = sqrt(alpha-bar_{t-1}) x_0 + sqrt(1 - alpha-bar_{t-1} - sigma_t^2) eps + sigma_t z

    With eta = 0 nothing is drawn after x_T, and more steps come nearer to the solution of the probability-flow ODE, to
    first order; eta = 1 is ddpm with the variance beta-tilde.

    Args:
      eta: how much of ddpm's noise is added, 0 to 1; other arguments and the result as in `ddpm`.
    """
    schedule, shape = diffusion.schedule, clean.shape[1:]
    num_steps = len(schedule)
    alpha_bar, alpha_bar_prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    signal, signal_prev = (jnp.asarray(np.sqrt(table), jnp.float32) for table in (alpha_bar, alpha_bar_prev))
    noise, variance_prev = (jnp.asarray(t, jnp.float32) for t in (np.sqrt(1 - alpha_bar), 1 - alpha_bar_prev))
    sigmas = eta * jnp.asarray(np.sqrt(schedule.posterior_variance), jnp.float32)
    if start is None:
        start = start_noise(keys, shape)

    def step(i, state):
        (x_t,), t = state, num_steps - 1 - i
        x_start = denoise(diffusion, denoise_fn, x_t, t).pred_xstart
        eps = (x_t - signal[t] * x_start) / noise[t]
        kept = jnp.sqrt(jnp.maximum(variance_prev[t] - sigmas[t] ** 2, 0.0))
        x_t = signal_prev[t] * x_start + kept * eps + sigmas[t] * sample_noise(step_keys(keys, t), shape)
        return (apply_mask(mask, x_t, clean),)

    return Sampling(num_steps, (apply_mask(mask, start, clean),), step)


def repaint(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    *,
    resamples: jax.Array | int = 1,
    start: jax.Array | None = None,
) -> Sampling:
    """Completion with a network that was trained without masks (Lugmayr et al. 2022, algorithm 1, arXiv 2201.09865).

    The network sees everything equally noisy. Given positions carry q(x_t | clean) with one noise for all steps, and
    each step is taken several times so that the rest grows to fit them:

        for t = T-1, ..., 0, `resamples` times each:
          x_{t-1} = the ddpm step of x_t;  at given positions q(x_{t-1} | clean)
          but for the last time:  x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z

    A network that was trained with masks does better with them and any other sampler.

    Args:
      resamples: times that each step is taken, 1 or more: network calls are so many times the steps.
      start: as in `ddpm`, like the other arguments and the result.
    """
    schedule, shape = diffusion.schedule, clean.shape[1:]
    num_steps = len(schedule)
    betas = jnp.asarray(schedule.betas, jnp.float32)
    alpha_bar_ends = np.append(1.0, schedule.alphas_cumprod)  # at t + 1, so that 0 is no noise at all
    signal = jnp.asarray(np.sqrt(alpha_bar_ends), jnp.float32)
    sigma = jnp.asarray(np.sqrt(1 - alpha_bar_ends), jnp.float32)
    if start is None:
        start = start_noise(keys, shape)
    fixed_noise = start  # independent of all that is drawn later

    def with_given(x, t):
        return apply_mask(mask, x, signal[t + 1] * clean + sigma[t + 1] * fixed_noise)

    def step(i, state):
        t = num_steps - 1 - i

        def resample(u, x_t):
            draws = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, u)))(step_keys(keys, t))
            again = jnp.sqrt(1 - betas[t]) * x_t + jnp.sqrt(betas[t]) * sample_noise(draws[:, 1], shape)
            x_t = jnp.where(u > 0, with_given(again, t), x_t)
            out = denoise(diffusion, denoise_fn, x_t, t)
            z = jnp.where(t > 0, sample_noise(draws[:, 0], shape), 0.0)
            return with_given(out.mean + jnp.exp(0.5 * out.log_variance) * z, t - 1)

        return (jax.lax.fori_loop(0, resamples, resample, state[0]),)

    return Sampling(num_steps, (with_given(start, num_steps - 1),), step)
