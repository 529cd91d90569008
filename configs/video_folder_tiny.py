"""A small VDT in pixel space on a folder of your own videos: to see the whole way from files to samples on a laptop.

    python train.py --config=configs/video_folder_tiny.py --config.data.path=FOLDER

16 frames of 32x32. What is diffused is the difference from the linear blend of the given frames (`residual`), so that
tasks with given frames look right within minutes; generation from nothing needs far more training. Optimizer: Muon.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config: Any = default.get_config()
    config.batch_size = 8
    config.total_steps = 500
    config.log_every = 20
    config.checkpoint_every = 100
    config.model.update(
        input_size=(32, 32),
        in_channels=3,
        patch_size=4,
        hidden_size=128,
        depth=4,
        num_heads=4,
        learn_sigma=False,
        unroll=4,
        remat="none",
    )
    config.diffusion.update(noise_schedule="cosine", prediction="x_start", loss_on="v", clip_denoised=True)
    config.diffusion.update(min_snr_gamma=5.0, residual=True)
    config.data.update(name="video_folder", path="", stride=1, hop=4)
    config.optimizer.name = "muon"
    config.learning_rate.update(peak=4e-3, warmup_steps=50, decay="tail")
    config.ema_decay = 0.99
    config.preview.update(every=250, num_steps=25)
    return config
