"""UCF-101, 16 frames: 64x64 in pixels as in the paper's table, or 256x256 in latents with class labels.

    python train.py --config=configs/ucf101.py --config.data.path=UCF-101/ucf101.csv
    python train.py --config=configs/ucf101.py:latents --config.data.path=UCF-101/ucf101.csv --config.vae=sd-vae-ft-ema

docs/data.md makes the list of an official split; the folder UCF-101 will do too, with a tenth of the videos held out.
Pixels: VDT-S with patches of 4, 41 M parameters. Latents: VDT-L/2 with 101 classes (of the list, or the folders) and a
tenth of the labels dropped, for guidance. Memory, time and result: not measured.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default
from vdt_jax.errors import UserError
from vdt_jax.models import VDT_VARIANTS

VARIANTS = ("", "latents")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise UserError(f"no variant '{variant}' of ucf101: choose from {', '.join(VARIANTS[1:])}")
    config: Any = default.get_config()
    config.batch_size = 256
    config.total_steps = 400_000
    config.checkpoint_every = 5_000
    config.keep_every = 50_000
    config.data.update(name="video_folder", stride=1)
    config.preview.update(every=10_000, num_steps=50)
    if variant == "latents":
        config.model.update(VDT_VARIANTS["VDT-L/2"])
        config.model.update(input_size=(32, 32), num_classes=101, dtype="bfloat16", remat="matmuls")
        config.data.labels = True
    else:
        config.model.update(VDT_VARIANTS["VDT-S/2"])
        config.model.update(input_size=(64, 64), in_channels=3, patch_size=4, dtype="bfloat16", learn_sigma=False)
        config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
        config.diffusion.min_snr_gamma = 5.0
    return config
