r"""Datasets of video prediction and generation, in pixels: VDT-S.

    python train.py --config=configs/pixels.py:taichi --config.data.path=taichi/train
    python train.py --config=configs/pixels.py:moving_mnist --config.data.path=train-images-idx3-ubyte.gz

    variant       frames          sampling                     videos
    bair          30 x 64x64      --task=predict --num_given=2 robot pushing
    cityscapes    30 x 128x128    --task=predict --num_given=2 as in the paper's table
    moving_mnist  20 x 64x64      --task=predict               two digits, drawn from a file of MNIST
    physion       16 x 128x128    --task=predict               Physion-Collide
    taichi        16 x 128x128    --task=unconditional         TaiChi-HD; Latte takes --config.data.stride=3

docs/data.md says where the videos come from and how to hold some out with --config.data.held_out_path.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default

MODELS: dict[str, dict[str, Any]] = {
    "bair": dict(input_size=(64, 64), num_frames=30, patch_size=4),
    "cityscapes": dict(input_size=(128, 128), num_frames=30, patch_size=8),
    "moving_mnist": dict(input_size=(64, 64), num_frames=20, patch_size=8, in_channels=1),
    "physion": dict(input_size=(128, 128), num_frames=16, patch_size=8),
    "taichi": dict(input_size=(128, 128), num_frames=16, patch_size=8),
}
VARIANTS = tuple(MODELS)


def get_config(variant: str = "") -> ConfigDict:
    default.check_variant("pixels", variant, VARIANTS)
    config: Any = pixels(**MODELS[variant])
    if config.model.num_frames == 30:
        config.batch_size = 64
    if variant == "moving_mnist":
        config.data.update(name="moving_mnist", stride=None, num_digits=2)
    return config


def pixels(**model: Any) -> ConfigDict:
    """`default.data_set` for small frames in pixels: VDT-S."""
    config: Any = default.data_set("VDT-S/2", learn_sigma=False, **({"in_channels": 3} | model))
    config.batch_size = 128
    config.total_steps = 300_000
    config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    return config


def short_run(**model: Any) -> ConfigDict:
    """`pixels` for minutes of one accelerator: 24 M parameters in patches of 4, Muon as in configs/moving_digits.py."""
    config: Any = pixels(patch_size=4, hidden_size=320, depth=10, num_heads=5, **model)
    config.model.update(unroll=10, remat="none")  # a bound of the step of 109 ms on an H100, not 152; docs/scaling.md
    config.batch_size = 64
    config.checkpoint_every = 500
    config.data.stride = None
    config.diffusion.update(prediction="x_start", loss_on="v")
    config.optimizer.update(name="muon", b2=0.99)
    config.learning_rate.update(peak=2e-3, warmup_steps=200, decay="tail")
    config.ema_decay = 0.999
    config.preview.update(every=1_000, num_steps=25)
    return config
