"""Every key that a recipe has, with what it means. Recipes start from here and change what they must."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config: Any = ConfigDict()
    config.seed = 0
    config.batch_size = 32  # of all devices and hosts together
    config.total_steps = 100_000
    config.log_every = 100
    config.checkpoint_every = 2_000
    config.keep_checkpoints = 3

    config.init_from = config_dict.placeholder(str)  # a converted folder or a working directory to start from
    config.init_fresh = config_dict.placeholder(str)  # what stays fresh then, e.g. "y_embedder,time_embed"

    # Keyword arguments of vdt_jax.models.VDT; VDT_VARIANTS there has the paper's sizes.
    config.model = dict(
        input_size=(32, 32),
        num_frames=16,
        in_channels=4,
        patch_size=2,
        hidden_size=384,
        depth=12,
        num_heads=6,
        mlp_ratio=4.0,
        num_classes=1,
        learn_sigma=True,
        dtype="float32",
        unroll=1,
    )
    # For a model of latents on videos: the autoencoder, as --vae of sample.py. It encodes batches and is not trained.
    config.vae = config_dict.placeholder(str)

    # Keyword arguments of vdt_jax.diffusion.make_diffusion.
    config.diffusion = dict(
        noise_schedule="linear",  # or cosine
        num_diffusion_timesteps=1000,
        prediction="eps",  # or v, x_start
        loss_on=config_dict.placeholder(str),  # the squared error's space; None = that of prediction
        min_snr_gamma=config_dict.placeholder(float),  # caps the weight of a noise level, e.g. 5.0
        clip_denoised=False,  # True for pixels
    )
    # Keyword arguments of vdt_jax.training.loss_fn.
    config.loss = dict(loss="normalised", mask_mixture="varied", label_dropout=0.1, noise_shift=1.0)

    config.optimizer = dict(weight_decay=0.0, clip_norm=1.0, b2=0.999)
    config.learning_rate = dict(peak=1e-4, warmup_steps=1_000, decay="constant")  # or cosine, tail
    config.ema_decay = 0.9999

    # name: moving_digits, synthetic, video_folder; the rest are keyword arguments of that source.
    config.data = dict(name="synthetic")
    config.data_threads = 2

    # Samples of the EMA weights for every task on held-out clips, into WORKDIR/samples; every=0 for none.
    config.preview = dict(every=2_000, num_steps=50, num_clips=2)
    # Losses by task and noise level, PSNR and SSIM of samples: EMA weights, held-out clips; every=0 for none.
    config.validation = dict(every=2_000, num_steps=25, num_clips=8)
    return config
