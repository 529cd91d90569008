"""A digit that moves and bounces: a VDT in pixel space that trains on a laptop.

    python train.py --config=configs/moving_digits.py --workdir=runs/digits

2.38 M parameters, 16 frames of 32x32. One CPU core does 1.8 steps per second, so 25,000 steps take 4 hours; at the
rate of an H100 they take 6 minutes. The hard part is a digit that keeps its identity over the clip. Labels on
some of the clips (`label_dropout`) and more noise (`noise_shift`), which hides single frames but not the whole clip,
make that faster to learn.
--config.data.num_digits=2 draws two digits, without classes (add --config.model.num_classes=1), and takes much longer.
docs/digits.md has the training and metrics of the bundled model.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config: Any = default.get_config()
    config.batch_size = 16
    config.total_steps = 25_000  # at a constant rate of 4e-3 the loss rises from step 34,000 on
    config.checkpoint_every = 500
    config.model.update(
        input_size=(32, 32),
        in_channels=1,
        patch_size=8,
        hidden_size=128,
        depth=6,
        num_heads=4,
        num_classes=10,
        learn_sigma=False,
        unroll=6,  # a fifth faster on a CPU
        remat="none",  # a tenth faster; memory is no limit here
    )
    config.diffusion.update(noise_schedule="cosine", prediction="x_start", loss_on="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    config.optimizer.update(name="muon", b2=0.99)
    config.learning_rate.update(peak=4e-3, warmup_steps=200, decay="tail")
    config.loss.noise_shift = 3.0  # the digit is decided at high noise
    config.loss.label_dropout = 0.7  # samples must work from given frames alone, too
    config.ema_decay = 0.999
    config.data.update(name="moving_digits", num_digits=1)
    config.preview.num_steps = 25
    return config
