"""TaiChi-HD, 128x128 in pixels, 16 frames.

    python train.py --config=configs/taichi.py --config.data.path=taichi/train --config.data.held_out_path=taichi/test

VDT-S with patches of 8; Latte takes every third frame, --config.data.stride=3. Memory, time and result: not measured.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    return default.pixels(input_size=(128, 128), num_frames=16, patch_size=8)
