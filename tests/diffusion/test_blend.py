"""Networks that correct the linear blend of the given frames (`blend_std`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.diffusion.blend import linear_blend
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.diffusion.guidance import guide
from vdt_jax.errors import UserError

SHAPE = (2, 5, 2, 2, 3)
MASK = jnp.ones((*SHAPE[:-1], 1)).at[:, ::4].set(0)  # the first and the last frame are given
OPTIONS = {"prediction": "x_start", "learn_sigma": False}


def fade():
    """Videos that fade evenly from one random picture to another: their blend is exact."""
    first, last = jax.random.uniform(jax.random.key(0), (2, SHAPE[0], 1, *SHAPE[2:]), minval=-1.0)
    time = jnp.linspace(0, 1, SHAPE[1]).reshape(1, -1, 1, 1, 1)
    return first + time * (last - first)


def mean_given(x_t, center, diffusion, steps, std=0.3):
    """E[x_0 | x_t] for x_0 ~ N(center, std^2): both sources of knowledge, weighted by their precisions."""
    tables = (diffusion.schedule.alpha, diffusion.schedule.sigma)
    alpha, sigma = (jnp.asarray(table, jnp.float32)[steps][:, None, None, None, None] for table in tables)
    precisions = 1 / std**2, alpha**2 / sigma**2
    return (center * precisions[0] + x_t / alpha * precisions[1]) / sum(precisions)


def test_without_correction_the_loss_is_that_of_the_mean_given_x_t():
    video, noise, steps = fade(), jax.random.normal(jax.random.key(1), SHAPE), jnp.array([100, 900])
    diffusion = make_diffusion(**OPTIONS, blend_std=0.3)
    loss = diffusion.training_losses(lambda x_t, t: jnp.zeros(SHAPE), video, MASK, steps, noise)["loss"]
    error = mean_given(diffusion.q_sample(video, steps, noise), video, diffusion, steps) - video
    expected = (jnp.square(error) * MASK).sum((1, 2, 3, 4)) / (MASK.sum((1, 2, 3, 4)) * SHAPE[-1])
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "scales",
    [{}, {"guidance": 3.0, "mask_guidance": 2.5}, {"mask_guidance": 2.5, "guidance_interval": (100.0, 1000.0)}],
)
def test_each_branch_of_guidance_corrects_the_blend_of_its_given_frames(scales):
    """The same network with the means added by hand: about the blend, and about 0 where nothing is given."""
    video, x_t, noise = fade(), jnp.ones(SHAPE), jnp.zeros(SHAPE)
    labels, timesteps = jnp.array([0, 1]), jnp.array([999, 999])

    def network(x_t, timesteps, labels):
        return 0.1 * x_t + labels[:, None, None, None, None]

    def by_hand(x_t, timesteps, labels):
        clean, mask = (x.repeat(len(x_t) // len(x), axis=0) for x in (video, MASK))
        given = (x_t[:, :1] == clean[:, :1]).all((1, 2, 3, 4), keepdims=True)
        center = linear_blend(clean, mask) * given
        return network(x_t, timesteps, labels) + mean_given(x_t, center, plain, jnp.ones(len(x_t), int))

    x_t = jnp.where(MASK > 0.5, x_t, video)
    plain, correcting = (make_diffusion(**OPTIONS, blend_std=std, timestep_respacing="2") for std in (None, 0.3))
    ours = guide(network, correcting, labels, video, MASK, noise, null_label=2, **scales)(x_t, timesteps)
    expected = guide(by_hand, plain, labels, video, MASK, noise, null_label=2, **scales)(x_t, timesteps)
    np.testing.assert_allclose(ours * MASK, expected * MASK, atol=1e-4)


def test_blend_std_needs_x_start():
    with pytest.raises(UserError, match=r"blend_std=0\.3 needs prediction=x_start, got prediction=eps"):
        make_diffusion(blend_std=0.3)
