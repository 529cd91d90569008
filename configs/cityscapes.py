r"""Cityscapes, 128x128 in pixels: 2 frames given, 28 to predict, as in the paper's table.

    python train.py --config=configs/cityscapes.py \
        --config.data.path=snippets/train --config.data.held_out_path=snippets/test

docs/data.md makes `snippets` of leftImg8bit_sequence. VDT-S with patches of 8: 256 tokens a frame, 30 frames. Sample
with --task=predict --num_given=2, which the mixture of masks draws among other numbers. Memory, time and result: not
measured.
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
        input_size=(128, 128), num_frames=30, in_channels=3, patch_size=8, dtype="bfloat16", learn_sigma=False
    )
    config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    config.data.update(name="video_folder", stride=1)
    config.preview.update(every=10_000, num_steps=50)
    return config
