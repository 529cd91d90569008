"""Every key that a recipe has, with what it means. Recipes start from here and change what they must."""

from typing import Any

from ml_collections import ConfigDict, config_dict

from vdt_jax.models.vdt import VDT_VARIANTS


def get_config() -> ConfigDict:
    config: Any = ConfigDict()
    config.seed = 0
    config.batch_size = 32  # of all devices and hosts together
    config.total_steps = 100_000
    config.log_every = 100
    config.checkpoint_every = 2_000
    config.keep_checkpoints = 3  # the newest so many, ...
    config.keep_every = config_dict.placeholder(int)  # ... and steps that this divides, for good

    config.mesh = dict(fsdp=1)  # over how many devices parameters, EMA and optimizer are split; docs/scaling.md
    config.grad_accum = 1  # parts that a batch is taken in, one after the other: less memory, the same update

    config.init_from = config_dict.placeholder(str)  # a converted folder or a working directory to start from
    config.init_fresh = config_dict.placeholder(str)  # what stays fresh then, e.g. "y_embedder,time_embed"

    # Keyword arguments of vdt_jax.models.vdt.VDT; VDT_VARIANTS there has the paper's sizes.
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
        remat="matmuls",  # what of a block is kept for its gradient: or none (all of it), full (nothing)
        temporal=True,  # False for a model of images, the first stage of training in two
    )
    # For a model of latents on videos: the autoencoder, as --vae of sample.py. It encodes batches and is not trained.
    config.vae = config_dict.placeholder(str)

    # Keyword arguments of vdt_jax.diffusion.gaussian.make_diffusion.
    config.diffusion = dict(
        noise_schedule="linear",  # or cosine
        num_diffusion_timesteps=1000,
        prediction="eps",  # or v, x_start
        loss_on=config_dict.placeholder(str),  # the squared error's space; None = that of prediction
        min_snr_gamma=config_dict.placeholder(float),  # caps the weight of a noise level, e.g. 5.0
        clip_denoised=False,  # True for pixels
    )
    # Keyword arguments of vdt_jax.training.step.loss_fn and draw_examples.
    config.loss = dict(loss="normalised", mask_mixture="varied", label_dropout=0.1, noise_shift=1.0)

    # name: adamw or muon (the kernels of the blocks; AdamW for the rest).
    # frozen: a regex; parameters in whose path it is found are not trained, e.g. "blocks/(attn|mlp)".
    config.optimizer = dict(name="adamw", weight_decay=0.0, clip_norm=1.0, b2=0.999, frozen="")
    config.learning_rate = dict(peak=1e-4, warmup_steps=1_000, decay="constant")  # or cosine, tail
    config.ema_decay = 0.9999

    # What stays None is as the source has it; docs/data.md says more, and which source takes which.
    config.data = dict(
        name="synthetic",  # moving_digits, moving_mnist, video_folder, latents, tfds:..., or package.module:Class
        options=dict(),  # keyword arguments of your own class, beside the keys below that it takes
        path=config_dict.placeholder(str),  # a folder, a .csv or .jsonl list; a latent cache; a file of digits
        held_out_path=config_dict.placeholder(str),  # another folder or list that is held out
        held_out=config_dict.placeholder(float),  # or a share of the videos: 0.1
        stride=config_dict.placeholder(int),  # frames of the video from one frame of a clip to the next: 1
        fps=config_dict.placeholder(float),  # or frames a second of a clip, whatever the videos'
        hop=config_dict.placeholder(int),  # frames of the video from one clip to the next: 4
        short=config_dict.placeholder(str),  # videos shorter than a clip: skip, or pad
        labels=config_dict.placeholder(bool),  # classes from folders, list or dataset; set model.num_classes
        random_crop=config_dict.placeholder(float),  # smallest size of a random crop, e.g. 0.8
        random_flip=config_dict.placeholder(bool),
        max_bad=config_dict.placeholder(float),  # share of the videos that may be unreadable: 0.1
        time_limit=config_dict.placeholder(float),  # seconds that decoding a clip may take: 10
        memory_limit=config_dict.placeholder(int),  # megabytes: 3000
        feature=config_dict.placeholder(str),  # of a tfds dataset: video
        num_digits=config_dict.placeholder(int),  # of moving digits and moving MNIST: 2
    )
    config.data_threads = 2

    # Samples of the EMA weights for every task on held-out clips, into WORKDIR/samples; every=0 for none.
    config.preview = dict(every=2_000, num_steps=50, num_clips=2)
    # Losses by task and noise level, PSNR and SSIM of samples: EMA weights, held-out clips; every=0 for none.
    config.validation = dict(every=2_000, num_steps=25, num_clips=8)
    return config


def data_set(variant: str, **model: Any) -> ConfigDict:
    """What the recipes of the papers' data sets share: a VDT of VDT_VARIANTS in bfloat16, on a folder of videos."""
    config: Any = get_config()
    config.batch_size = 256
    config.total_steps = 400_000
    config.checkpoint_every = 5_000
    config.keep_every = 50_000
    config.model.update(VDT_VARIANTS[variant])
    config.model.update(dtype="bfloat16", **model)
    config.data.update(name="video_folder", stride=1)
    config.preview.update(every=10_000, num_steps=50)
    return config


def pixels(**model: Any) -> ConfigDict:
    """`data_set` for small frames, without an autoencoder: VDT-S."""
    config: Any = data_set("VDT-S/2", learn_sigma=False, **({"in_channels": 3} | model))
    config.batch_size = 128
    config.total_steps = 300_000
    config.diffusion.update(noise_schedule="cosine", prediction="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    return config
