"""placeholder"""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config: Any = default.get_config()
    config.batch_size = 32
    config.model.update(
        input_size=(32, 32), in_channels=1, patch_size=4, hidden_size=128, depth=6, num_heads=4, learn_sigma=False
    )
    config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
    config.data = dict(name="moving_digits", num_digits=2)
    config.learning_rate.update(peak=1e-3, warmup_steps=200, decay="cosine")
    config.ema_decay = 0.999
    return config
