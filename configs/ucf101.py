"""UCF-101, 16 frames: 64x64 in pixels as in the paper's table, or 256x256 in latents with class labels.

    python train.py --config=configs/ucf101.py --config.data.path=UCF-101/ucf101.csv
    python train.py --config=configs/ucf101.py:latents --config.data.path=UCF-101/ucf101.csv --config.vae=sd-vae-ft-ema

docs/data.md has code that writes the list of an official split. With the folder UCF-101 as the path, a tenth of the
videos is held out.
Pixels: VDT-S with patches of 4, 41 M parameters. Latents: VDT-L/2 with 101 classes (of the list, or the folders) and a
tenth of the labels dropped, for guidance.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default, pixels

VARIANTS = ("", "latents")


def get_config(variant: str = "") -> ConfigDict:
    default.check_variant("ucf101", variant, VARIANTS)
    if variant == "latents":
        config: Any = default.data_set("VDT-L/2", input_size=(32, 32), num_classes=101)
        config.data.labels = True
        return config
    config = pixels.pixels(input_size=(64, 64), patch_size=4)
    config.batch_size = 256
    config.total_steps = 400_000
    return config
