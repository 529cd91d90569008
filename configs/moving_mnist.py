"""Moving MNIST, 64x64, 20 frames in grey: 10 given, 10 to predict, made from a file of MNIST digits.

    python train.py --config=configs/moving_mnist.py --config.data.path=train-images-idx3-ubyte.gz

VDT-S with patches of 8, 64 tokens a frame. configs/moving_digits.py needs no download. Memory, time and result: not
measured.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config: Any = default.pixels(input_size=(64, 64), num_frames=20, in_channels=1, patch_size=8)
    config.data.update(name="moving_mnist", stride=None, num_digits=2)
    return config
