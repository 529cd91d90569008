"""A small VDT in pixel space on a folder of your own videos: to see the whole way from files to samples on a laptop.

    python train.py --config=configs/video_folder_tiny.py --config.data.path=FOLDER

16 frames of 32x32. It learns a few videos by heart and little else.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config: Any = default.get_config()
    config.batch_size = 8
    config.total_steps = 400
    config.log_every = 20
    config.checkpoint_every = 100
    config.model.update(
        input_size=(32, 32),
        in_channels=3,
        patch_size=8,
        hidden_size=128,
        depth=4,
        num_heads=4,
        learn_sigma=False,
        unroll=4,
    )
    config.diffusion.update(noise_schedule="cosine", prediction="x_start", loss_on="v", clip_denoised=True)
    config.diffusion.min_snr_gamma = 5.0
    config.data = ConfigDict(
        dict(
            name="video_folder",
            path="",  # a folder, or a .csv or .jsonl list
            held_out_path="",  # another one to hold out; "" for one video in ten of `path`
            held_out=0.1,
            stride=1,  # frames of the video from one frame of a clip to the next
            fps=0.0,  # or frames a second of a clip, whatever the videos'
            hop=4,  # frames of the video from one clip to the next
            short="skip",  # or pad
            labels=False,  # True: classes are the folders below `path`, or the list's labels; set model.num_classes
            random_crop=0.0,  # e.g. 0.8
            random_flip=False,
            max_bad=0.1,  # share of the videos that may be unreadable; bad_files.jsonl lists them
            time_limit=10.0,  # seconds and megabytes that decoding a clip may take
            memory_limit=3000,
        )
    )
    config.learning_rate.update(peak=1e-3, warmup_steps=50)
    config.ema_decay = 0.99
    config.preview.update(every=200, num_steps=25)
    return config
