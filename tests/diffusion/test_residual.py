"""Networks that estimate x_0 minus the linear blend of the given frames."""

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
OPTIONS = {"prediction": "x_start", "learn_sigma": False, "residual": True}


def fade():
    """Videos that fade evenly from one random picture to another: their blend is exact."""
    first, last = jax.random.uniform(jax.random.key(0), (2, SHAPE[0], 1, *SHAPE[2:]), minval=-1.0)
    time = jnp.linspace(0, 1, SHAPE[1]).reshape(1, -1, 1, 1, 1)
    return first + time * (last - first)


def test_the_loss_of_no_change_to_an_exact_blend_is_0():
    video, noise, steps = fade(), jnp.ones(SHAPE), jnp.array([100, 900])
    loss = make_diffusion(**OPTIONS).training_losses(lambda x_t, t: jnp.zeros(SHAPE), video, MASK, steps, noise)["loss"]
    np.testing.assert_allclose(loss, 0, atol=1e-10)


@pytest.mark.parametrize(
    "scales",
    [{}, {"guidance": 3.0, "mask_guidance": 2.5}, {"mask_guidance": 2.5, "guidance_interval": (2.0, 3.0)}],
)
def test_sampling_adds_the_blend_of_each_branch(scales):
    """A residual network and the same network with its blend added by hand, where nothing given has the blend 0."""
    video, x_t, noise = fade(), jnp.ones(SHAPE), jnp.zeros(SHAPE)
    labels, timesteps = jnp.array([0, 1]), jnp.array([0, 999])

    def network(x_t, timesteps, labels):
        return 0.1 * x_t + labels[:, None, None, None, None]

    def by_hand(x_t, timesteps, labels):
        clean, mask = (x.repeat(len(x_t) // len(x), axis=0) for x in (video, MASK))
        given = (x_t[:, :1] == clean[:, :1]).all((1, 2, 3, 4), keepdims=True)
        return network(x_t, timesteps, labels) + linear_blend(clean, mask) * given

    x_t = jnp.where(MASK > 0.5, x_t, video)
    outputs = []
    for f, residual in ((network, True), (by_hand, False)):
        diffusion = make_diffusion(**OPTIONS | {"residual": residual}, timestep_respacing="2")
        outputs.append(guide(f, diffusion, labels, video, MASK, noise, null_label=2, **scales)(x_t, timesteps))
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_residual_needs_x_start():
    with pytest.raises(UserError, match="residual=True needs prediction=x_start, got prediction=eps"):
        make_diffusion(residual=True)
