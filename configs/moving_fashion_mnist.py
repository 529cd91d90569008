r"""Moving Fashion-MNIST as OpenSTL makes it, 64x64, 20 frames in grey: 10 given, 10 to predict.

    apt-get install dataset-fashion-mnist
    python train.py --config=configs/moving_fashion_mnist.py
    python evaluate.py --checkpoint=runs/moving_fashion_mnist --output=runs/mfmnist --preset=openstl-mfmnist

24.1 M parameters in bfloat16, patches of 4. The size is meant for 18 minutes of one H100: a sample is 0.589 TFLOP of
training (vdt_jax/models/flops.py), so the 5,000 steps are 189 PFLOP, 16 minutes if 20 % of the peak of 989 TFLOP/s are
reached, which is an assumption. docs/data.md has published scores of other models.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import pixels


def get_config() -> ConfigDict:
    config: Any = pixels.short_run(input_size=(64, 64), num_frames=20, in_channels=1)
    config.total_steps = 5_000
    config.data.name = "moving_fashion_mnist"
    return config
