"""Moving MNIST, 64x64, 20 frames in grey: 10 given, 10 to predict, made from a file of MNIST digits.

    python train.py --config=configs/moving_mnist.py --config.data.path=train-images-idx3-ubyte.gz

VDT-S with patches of 8, 64 tokens a frame. configs/moving_digits.py needs no download. Memory, time and result: not
measured.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default
from vdt_jax.models import VDT_VARIANTS


def get_config() -> ConfigDict:
    config: Any = default.get_config()
    config.batch_size = 128
    config.total_steps = 300_000
    config.checkpoint_every = 5_000
    config.keep_every = 50_000
    config.model.update(VDT_VARIANTS["VDT-S/2"])
    config.model.update(
        input_size=(64, 64), num_frames=20, in_channels=1, patch_size=8, dtype="bfloat16", learn_sigma=False
    )
    config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    config.data.update(name="moving_mnist", num_digits=2)
    config.preview.update(every=10_000, num_steps=50)
    return config
