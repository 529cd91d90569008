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


def get_config() -> ConfigDict:
    config: Any = default.pixels(input_size=(128, 128), num_frames=30, patch_size=8)
    config.batch_size = 64
    return config
