"""Physion-Collide, 128x128 in pixels, 16 frames: what a falling tower does next.

    python train.py --config=configs/physion.py --config.data.path=physion

VDT-S with patches of 8. The paper answers questions about the scenes from its samples; that is not done here. Memory,
time and result: not measured.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    return default.pixels(input_size=(128, 128), num_frames=16, patch_size=8)
