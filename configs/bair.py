"""BAIR robot pushing, 64x64 in pixels, 30 frames: 2 given, 28 to predict.

    python train.py --config=configs/bair.py --config.data.path=bair/train --config.data.held_out_path=bair/test

docs/data.md tells where the frames come from. VDT-S with patches of 4: 256 tokens a frame. Sample with --task=predict
--num_given=2. Memory, time and result: not measured.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config: Any = default.pixels(input_size=(64, 64), num_frames=30, patch_size=4)
    config.batch_size = 64
    return config
