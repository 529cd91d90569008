r"""Moving Fashion-MNIST as OpenSTL makes it, 64x64, 20 frames in grey: 10 given, 10 to predict.

    apt-get install dataset-fashion-mnist
    python train.py --config=configs/moving_fashion_mnist.py
    python evaluate.py --checkpoint=runs/moving_fashion_mnist --output=runs/mfmnist --preset=openstl-mfmnist

24.1 M parameters in bfloat16, patches of 4, meant for 18 minutes of one H100, and not trained yet. By
`make gpu-check` a step takes at least 137 ms and 52 GiB there, so the 5,000 steps at least 11 minutes; 16 if the
step takes 1.4 times its bound, as VDT-L/2's does (docs/benchmarks.md). docs/data.md has published scores of others.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import pixels


def get_config() -> ConfigDict:
    config: Any = pixels.short_run(input_size=(64, 64), num_frames=20, in_channels=1)
    config.total_steps = 5_000
    config.data.name = "moving_fashion_mnist"
    return config
