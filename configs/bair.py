"""BAIR robot pushing, 64x64 in pixels, 30 frames: 2 given, 28 to predict.

    python train.py --config=configs/bair.py --config.data.path=bair/train --config.data.held_out_path=bair/test

docs/data.md tells where the frames come from. VDT-S with patches of 4: 256 tokens a frame. Sample with --task=predict
--num_given=2. Memory, time and result: not measured.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default
from vdt_jax.models import VDT_VARIANTS


def get_config() -> ConfigDict:
    config: Any = default.get_config()
    config.batch_size = 64
    config.total_steps = 300_000
    config.checkpoint_every = 5_000
    config.keep_every = 50_000
    config.model.update(VDT_VARIANTS["VDT-S/2"])
    config.model.update(
        input_size=(64, 64), num_frames=30, in_channels=3, patch_size=4, dtype="bfloat16", learn_sigma=False
    )
    config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    config.data.update(name="video_folder", stride=1)
    config.preview.update(every=10_000, num_steps=50)
    return config
