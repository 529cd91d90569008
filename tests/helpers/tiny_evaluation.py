"""A tiny model of digits with random weights, and a protocol of an evaluation of it."""

import functools

import jax
import numpy as np

from vdt_jax.data import make_source
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.models.vdt import VDT

SIZES = dict(
    input_size=(16, 16),
    num_frames=4,
    in_channels=1,
    patch_size=8,
    hidden_size=16,
    depth=1,
    num_heads=2,
    num_classes=10,
    learn_sigma=False,
)
NETWORK = VDT(**SIZES)
DATA = {"name": "moving_digits", "num_digits": 1}
CONFIG = {
    "model": SIZES,
    "diffusion": {"noise_schedule": "cosine", "prediction": "x_start", "clip_denoised": True},
    "data": DATA,
}
SOURCE = make_source(DATA, NETWORK.video_shape, "held_out")
PROTOCOL = dict(
    preset=None,
    checkpoint="tiny",
    vae=None,
    model_sha256="",
    vae_sha256=None,
    data=DATA,
    split="held_out",
    clips=5,
    first_clip=3,
    every=2,
    clips_sha256="",
    frames=4,
    height=16,
    width=16,
    channels=1,
    crop="none",
    stride=None,
    clips_per_video="1",
    mask_mixture="varied",
    tasks=["predict"],
    num_given=1,
    told_labels=[],
    guidance=None,
    guidance_interval=None,
    positions="generated",
    psnr_of="clip",
    ssim_border=0,
    fvd_frames="all",
    samples_per_clip=2,
    sampler="ddpm",
    steps=2,
    seed=0,
    metrics=["psnr", "ssim", "motion"],
    networks={},
    versions={},
)


@functools.cache
def pipeline():
    x = jax.ShapeDtypeStruct((1, *NETWORK.video_shape), np.float32)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), np.float32))["params"]
    rng = np.random.default_rng(0)
    # Not the initial values: the last layer begins as 0, and all samples would be equal.
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), shapes)
    return Pipeline(NETWORK, jax.device_put(params), CONFIG)
