"""Sky Time-Lapse, 16 frames of 256x256 in the latents of a Stable Diffusion autoencoder, as the official checkpoint.

    python train.py --config=configs/sky_timelapse.py --config.data.path=sky --config.vae=sd-vae-ft-ema
    python train.py --config=configs/sky_timelapse.py:24gb ...       # VDT-L/2 on one GPU of 24 GB: batch 1 at a time
    python train.py --config=configs/sky_timelapse.py:small ...      # VDT-S/2
    python train.py --config=configs/sky_timelapse.py:dit ...        # DiT's settings: docs/scaling.md
    python train.py --config=configs/sky_timelapse.py:image ...      # stage 1 of 2: the spatial half, on single frames
    python train.py --config=configs/sky_timelapse.py:from_image --config.init_from=runs/sky_timelapse_image ...

VDT-L/2 has 860 M parameters; its state alone is 12.8 GiB on every device, less with --config.mesh.fsdp. By the
compilers' count :24gb takes 19.76 GiB on an H100 and 21.65 GiB on one TPU chip (docs/scaling.md). The paper publishes
neither learning rate, batch size nor iterations: these are those of DiT and its followers.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default
from vdt_jax.models.vdt import VDT_VARIANTS

VARIANTS = ("", "24gb", "small", "dit", "image", "from_image")


def get_config(variant: str = "") -> ConfigDict:
    default.check_variant("sky_timelapse", variant, VARIANTS)
    config: Any = default.data_set("VDT-L/2", input_size=(32, 32))
    if variant == "24gb":
        config.batch_size = config.grad_accum = 32
        config.model.remat = "full"
    if variant == "small":
        config.model.update(VDT_VARIANTS["VDT-S/2"])
    if variant == "dit":
        config.model.dtype = "float32"
        config.loss.update(loss="parity", mask_mixture="official", label_dropout=0.1)
        config.optimizer.update(name="adamw", b2=0.999, weight_decay=0.0, clip_norm=0.0)
        config.learning_rate.update(peak=1e-4, warmup_steps=0, decay="constant")
        config.update(ema_decay=0.9999, ema_warmup=False)
        config.data.update(crop="dit", random_flip=True)
    if variant == "image":
        config.model.update(num_frames=1, temporal=False)
    if variant == "from_image":
        config.init_fresh = "time_embed,blocks/temporal_norm1,blocks/temporal_attn,blocks/temporal_fc"
    return config
