"""The base of every recipe: the keys of `TrainConfig`, which documents them, and those of all data sources."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from vdt_jax import cli
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT_VARIANTS
from vdt_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    config: Any = cli.config_of_options(TrainConfig())
    # None stands for the source's default, shown after the colon; docs/data.md lists the keys that each source takes.
    config.data = dict(
        name="synthetic",  # a source of docs/data.md, or package.module:Class
        options=dict(),  # more keyword arguments of your own class
        path=config_dict.placeholder(str),  # a folder, a .csv or .jsonl list; a latent cache; a file of digits
        held_out_path=config_dict.placeholder(str),  # another folder or list that is held out
        held_out=config_dict.placeholder(float),  # or a share of the videos: 0.1
        stride=config_dict.placeholder(int),  # frames of the video from one frame of a clip to the next: 1
        fps=config_dict.placeholder(float),  # or frames per second of a clip, whatever the videos'
        hop=config_dict.placeholder(int),  # frames of the video from one clip to the next: 4
        short=config_dict.placeholder(str),  # videos shorter than a clip: skip, or pad
        labels=config_dict.placeholder(bool),  # classes from folders, list or dataset; set model.num_classes
        crop=config_dict.placeholder(str),  # centre crop: exact, or dit (to whole pixels, as DiT)
        random_crop=config_dict.placeholder(float),  # smallest size of a random crop, e.g. 0.8
        random_flip=config_dict.placeholder(bool),
        max_bad=config_dict.placeholder(float),  # share of the videos that may be unreadable: 0.1
        time_limit=config_dict.placeholder(float),  # seconds of CPU time for decoding a clip: 10
        memory_limit=config_dict.placeholder(int),  # megabytes for decoding a clip: 3000
        feature=config_dict.placeholder(str),  # of a tfds dataset: video
        num_digits=config_dict.placeholder(int),  # of moving digits and moving MNIST: 2
    )
    return config


def data_set(variant: str, **model: Any) -> ConfigDict:
    """The base of the recipes of the papers' datasets: a VDT of VDT_VARIANTS in bfloat16, on a folder of videos."""
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


def check_variant(recipe: str, variant: str, variants: Sequence[str]) -> None:
    """Raises UserError where a recipe has no such variant."""
    if variant not in variants:
        names = ", ".join(filter(None, variants))
        raise UserError(f"{recipe} has no variant '{variant}': write configs/{recipe}.py:NAME, NAME one of {names}")
