"""A VDT of latents samples a video: encode, sample, decode, with nothing hidden leaking and nothing given changing."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import generate, sample_keys
from vdt_jax.latents.codec import encode_batch, encode_video
from vdt_jax.latents.space import PixelSpace, load_space
from vdt_jax.models.vdt import VDT

GOLDENS = Path(__file__).parents[1] / "goldens"
MODEL = VDT(input_size=4, num_frames=2, patch_size=2, hidden_size=8, depth=1, num_heads=1)


@pytest.fixture(scope="module")
def vae():
    return load_space(GOLDENS / "vae_tiny")


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def mask():
    """The first frame of one clip is given; of the other, the left half of both frames."""
    mask = np.zeros((2, 2, 4, 4, 1), np.float32)
    mask[0, 1] = 1
    mask[1, :, :, 2:] = 1
    return mask


def test_masks_are_enlarged_and_shrunk_by_cells(vae):
    mask = np.array([[0, 1], [0, 0]], np.float32).reshape(1, 1, 2, 2, 1)
    pixels = vae.enlarge_mask(mask)
    np.testing.assert_array_equal(pixels[0, 0, :, :, 0], np.kron(mask[0, 0, :, :, 0], np.ones((4, 4))))
    np.testing.assert_array_equal(vae.shrink_mask(pixels), mask)
    pixels[:, :, 7, 0] = 1  # one pixel of a cell is enough
    assert vae.shrink_mask(pixels)[0, 0, :, :, 0].tolist() == [[0, 1], [1, 0]]


def test_pixels_pass_through_unchanged(clips, mask):
    space = PixelSpace()
    assert space.clip_shape(MODEL) == MODEL.video_shape and space.hash is None
    assert space.encode(clips, mask, None) is clips and space.decode(clips, None, mask) is clips
    assert space.enlarge_mask(mask) is mask and space.shrink_mask(mask) is mask


def test_hidden_pixels_do_not_reach_the_latents(vae, clips, mask):
    assert vae.clip_shape(MODEL) == clips.shape[1:]
    keys = sample_keys(0, range(2))
    hidden = vae.enlarge_mask(mask) > 0.5
    others = np.where(hidden, -clips, clips)
    np.testing.assert_array_equal(vae.encode(clips, mask, keys), vae.encode(others, mask, keys))
    full = [vae.encode(x, mask, keys, encode_full=True) for x in (clips, others)]
    given = np.broadcast_to(mask[1:] < 0.5, full[0][1:].shape)
    assert np.abs(np.asarray(full[0] - full[1])[1:][given]).max() > 1e-3  # they leak through the attention


def test_hidden_pixels_are_the_mean_of_the_given(vae, clips, mask):
    hidden = vae.enlarge_mask(mask)[..., 0] > 0.5
    filled = clips.copy()
    for clip, where in zip(filled, hidden, strict=True):
        clip[where] = clip[~where].mean(axis=0)
    keys = sample_keys(0, range(2))
    expected = vae.encode(filled, mask, keys, encode_full=True)
    np.testing.assert_allclose(vae.encode(clips, mask, keys), expected, atol=1e-5)
    assert np.asarray(expected)[0, 0].any() and not np.asarray(expected)[0, 1].any()  # nothing given, not encoded
    assert not np.asarray(vae.encode(clips, np.ones_like(mask), keys)).any()


def test_given_pixels_come_back_as_they_were(vae, clips, mask):
    keys = sample_keys(0, range(2))
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, *MODEL.video_shape)), jnp.zeros(1))["params"]
    latents = vae.encode(clips, mask, keys)
    samples = generate(MODEL, params, make_diffusion(timestep_respacing="2"), latents, mask, keys)
    given = np.broadcast_to(mask < 0.5, samples.shape)
    np.testing.assert_array_equal(np.asarray(samples)[given], np.asarray(latents)[given])
    pasted, decoded = (vae.decode(samples, clips, mask, paste) for paste in (True, False))
    hidden = np.broadcast_to(vae.enlarge_mask(mask) > 0.5, clips.shape)
    np.testing.assert_array_equal(pasted[~hidden], clips[~hidden])
    np.testing.assert_allclose(pasted[hidden], decoded[hidden], atol=1e-5)  # frames alone, or in one chunk
    assert (decoded[~hidden] != clips[~hidden]).any()


def test_an_autoencoder_of_other_latents(vae):
    with pytest.raises(UserError, match="has 3 channels, the latents of the autoencoder have 4"):
        vae.clip_shape(VDT(in_channels=3))


def test_a_training_batch_is_encoded_as_clips_are(vae, clips):
    encode = jax.jit(functools.partial(encode_batch, vae.model))
    batch = encode(vae.params, clips, None)
    clip_by_clip = [encode_video(vae.model, vae.params, clip, key=None) for clip in clips]
    np.testing.assert_allclose(batch, np.stack(clip_by_clip), atol=1e-5)
    drawn = [encode(vae.params, clips, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).mean() > 0.9
