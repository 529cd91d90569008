"""Diffusion of the difference from the linear blend of the given frames (`residual`)."""

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.gaussian import make_diffusion

SHAPE = (2, 5, 2, 2, 3)
MASK = jnp.ones((*SHAPE[:-1], 1)).at[:, ::4].set(0)  # the first and the last frame are given
STEPS = jnp.array([100, 900])


def test_the_network_gets_noised_differences_and_clean_given_frames():
    first, last, extra, noise = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE)), jnp.float32)
    time = jnp.linspace(0, 1, SHAPE[1]).reshape(1, -1, 1, 1, 1)
    blend = first[:, :1] + time * (last[:, :1] - first[:, :1])
    difference = extra * MASK
    diffusion = make_diffusion(prediction="x_start", learn_sigma=False, residual=True)

    @jax.jit
    def loss_and_input():
        inputs = []

        def exact(x_t, timesteps):
            inputs.append(x_t)
            return difference

        return diffusion.training_losses(exact, blend + difference, MASK, STEPS, noise)["loss"], inputs[0]

    loss, x_t = loss_and_input()
    np.testing.assert_allclose(loss, 0, atol=1e-10)
    expected = jnp.where(MASK > 0.5, diffusion.q_sample(difference, STEPS, noise), blend)
    np.testing.assert_allclose(x_t, expected, atol=1e-6)


def test_with_nothing_given_the_loss_is_that_of_any_diffusion():
    video, noise = jnp.asarray(np.random.default_rng(1).standard_normal((2, *SHAPE), np.float32))
    losses = [
        make_diffusion(learn_sigma=False, residual=residual).training_losses(
            lambda x_t, timesteps: jnp.sin(x_t), video, jnp.ones((*SHAPE[:-1], 1)), STEPS, noise
        )["loss"]
        for residual in (False, True)
    ]
    np.testing.assert_array_equal(*losses)
