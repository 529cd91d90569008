"""The official numbers: network, losses, gradients and sampler against float64 figures of the official code."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.diffusion.samplers import Problem, ddpm, solve
from vdt_jax.models.vdt import VDT
from vdt_jax.weights.torch_files import load_torch
from vdt_jax.weights.vdt import from_torch, read_sizes, to_torch

GOLDENS = Path(__file__).parent / "goldens"

# Other ways to compute the same network. The bounds of bfloat16, which has three digits, are about twice what was
# measured (0.011 and 0.0057, on a CPU).
WAYS = {
    "scanned": {},
    "unrolled": dict(unroll=3),
    "matmuls kept": dict(remat="matmuls"),
    "nothing kept": dict(remat="full"),
}
BFLOAT16 = {"forward": 0.02, "gradient norm": 0.01}


@pytest.fixture(scope="module")
def tiny():
    return load_tiny()


def load_tiny():
    """(model, params) of the official tiny VDT."""
    state_dict = load_torch(GOLDENS / "vdt_tiny.pt")
    sizes = read_sizes(state_dict, num_heads=3)
    model = VDT(**sizes)
    x = jnp.zeros((1, *model.video_shape))
    expected = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1))["params"]
    return model, from_torch(state_dict, sizes, expected)


def relative_error(name, ours, official):
    """The largest difference over the largest official value; printed, so that `pytest -rP` shows the margins."""
    error = np.abs(np.asarray(ours, np.float64) - official).max() / np.abs(official).max()
    print(f"{name}: {error:.1e}")
    return error


def video(array):
    """Torch's (B, T, C, H, W) to ours."""
    return jnp.asarray(rearrange(array, "b f c h w -> b f h w c"), jnp.float32)


def state(array):
    """The official sampler's (B, C, T, H, W) to ours."""
    return jnp.asarray(rearrange(array, "... c f h w -> ... f h w c"), jnp.float32)


def test_sizes_are_read_off_the_shapes(tiny):
    model, _ = tiny
    assert (model.video_shape, model.depth, model.hidden_size, model.num_classes) == ((5, 8, 8, 4), 3, 48, 1)
    assert model.learn_sigma


def forward_error(model, params):
    golden = np.load(GOLDENS / "vdt_tiny_forward.npz")
    out = jax.jit(model.apply)({"params": params}, video(golden["x"]), jnp.asarray(golden["t"]))
    return relative_error("forward", rearrange(out, "b f h w c -> b f c h w"), golden["out"])


@pytest.mark.parametrize("unroll", [1, 3])
def test_forward(tiny, unroll):
    model, params = tiny
    assert forward_error(model.clone(unroll=unroll), params) < 1e-5


def losses(model, params, respacing, prefix):
    golden = np.load(GOLDENS / "vdt_tiny_training_losses.npz")
    diffusion = make_diffusion(timestep_respacing=respacing)
    return diffusion.training_losses(
        lambda x_t, timesteps: model.apply({"params": params}, x_t, timesteps),
        video(golden[f"{prefix}_x_start"]),
        jnp.asarray(golden["mask"], jnp.float32)[..., None],
        jnp.asarray(golden[f"{prefix}_t"]),
        state(golden[f"{prefix}_noise"]),
        loss="parity",
    )


@pytest.mark.parametrize(("respacing", "prefix"), [("", "full"), ("16", "respaced")])
def test_training_losses(tiny, respacing, prefix):
    golden = np.load(GOLDENS / "vdt_tiny_training_losses.npz")
    model, params = tiny
    ours = jax.jit(lambda params: losses(model, params, respacing, prefix))(params)
    for name in ("mse", "vb", "loss"):
        official = golden[f"{prefix}_{name}"]
        for example in range(len(official)):
            label = f"{prefix} {name}, t = {golden[f'{prefix}_t'][example]}"
            assert relative_error(label, ours[name][example], official[example]) < 1e-5


def gradient_norm_errors(model, params):
    golden = np.load(GOLDENS / "vdt_tiny_grad_norms.npz")
    grads = jax.jit(jax.grad(lambda params: losses(model, params, "", "full")["loss"].mean()))(params)
    norms = {name: np.linalg.norm(np.float64(grad)) for name, grad in to_torch(grads, model.patch_size).items()}
    assert norms.keys() == set(golden.files)
    return {name: relative_error(name, norm, golden[name]) for name, norm in norms.items()}


@pytest.mark.parametrize("way", WAYS)
def test_every_gradient_norm(tiny, way):
    model, params = tiny
    errors = gradient_norm_errors(model.clone(**WAYS[way]), params)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_is_within_its_bounds(tiny, way):
    model, params = tiny
    model = model.clone(dtype="bfloat16", **WAYS[way])
    if model.remat == "none":  # remat changes the backward pass alone
        assert forward_error(model, params) < BFLOAT16["forward"]
    assert max(gradient_norm_errors(model, params).values()) < BFLOAT16["gradient norm"]


def sampling_error(model, params, name, clip, masked=True):
    golden = np.load(GOLDENS / "vdt_tiny_sampling.npz")
    diffusion = make_diffusion(timestep_respacing="16", clip_denoised=clip)
    np.testing.assert_array_equal(diffusion.schedule.timestep_map, golden["timestep_map"])
    mask = golden["mask"] if masked else np.ones_like(golden["mask"])
    mask = jnp.asarray(mask, jnp.float32)[..., None]
    clean = video(golden["raw_x"])
    keys = jax.random.split(jax.random.key(0), clean.shape[0])

    @jax.jit
    def sample(params):
        def denoise_fn(x_t, timesteps):
            return model.apply({"params": params}, x_t, timesteps)

        problem = Problem(diffusion, denoise_fn, keys, clean, mask, start=state(golden["z"]))
        return solve(ddpm, problem, noises=state(golden["noises"]))

    ours = sample(params)
    generated = np.broadcast_to(np.asarray(mask) > 0.5, ours.shape)
    np.testing.assert_array_equal(np.asarray(ours)[~generated], np.asarray(clean)[~generated])
    official = rearrange(golden[name], "b c f h w -> b f h w c")
    return relative_error(name, np.asarray(ours)[generated], official[generated])


@pytest.mark.parametrize(
    ("name", "clip", "masked", "bound"),
    [("sample", False, True, 1e-5), ("sample_clip", True, True, 5e-5), ("sample_unmasked", False, False, 1e-5)],
)
def test_sampling(tiny, name, clip, masked, bound):
    assert sampling_error(*tiny, name, clip, masked) < bound
