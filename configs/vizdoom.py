r"""ViZDoom, 16 frames of 64x64 in colour: a random player walks through the rooms of my_way_home, without a download.

    pip install -e '.[vizdoom]' -c constraints.txt
    python prepare.py --input=vizdoom:my_way_home --output=DIR --num_clips=2400 --num_frames=32 --size=64
    python train.py --config=configs/vizdoom.py --config.data.name=tfds:DIR
    python train.py --config=configs/vizdoom.py:cpu --config.data.name=tfds:DIR     # 32x32, for two CPU cores

Without --config.data.name clips are played during training, at 1.7 times the CPU time. 24.1 M parameters
in bfloat16, patches of 4, meant for 18 minutes of one H100, and not trained yet. By `make gpu-check` a step takes at
least 109 ms and 41 GiB there, so the 6,000 steps at least 11 minutes; 15 if the step takes 1.4 times its bound, as
VDT-L/2's does (docs/benchmarks.md). `cpu` is the model of configs/moving_digits.py, 2.4 M parameters: docs/vizdoom.md
has its results.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default, pixels

VARIANTS = ("", "cpu")


def get_config(variant: str = "") -> ConfigDict:
    default.check_variant("vizdoom", variant, VARIANTS)
    config: Any = pixels.short_run(input_size=(64, 64), num_frames=16, in_channels=3)
    config.total_steps = 6_000
    config.data.update(name="vizdoom:my_way_home", hop=1)
    if variant == "cpu":
        config.batch_size = 16
        config.total_steps = 25_000
        config.model.update(input_size=(32, 32), patch_size=8, hidden_size=128, depth=6, num_heads=4, dtype="float32")
        config.model.update(unroll=6, remat="none")  # faster on a CPU
        config.learning_rate.peak = 4e-3
    return config
