"""Every recipe and every variant: at full size as shapes, and shrunk for two steps."""

import dataclasses
import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from helpers.scripts import SHRUNK, fail, succeed
from ml_collections import config_flags

from vdt_jax import cli
from vdt_jax.checkpoints import load_model
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.distributed.mesh import check_batch_size, make_mesh, path_name
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.options import build
from vdt_jax.training.config import DiffusionOptions, LearningRateOptions, LossOptions, OptimizerOptions, TrainConfig
from vdt_jax.training.optimizer import count_trained, make_learning_rate, make_optimizer
from vdt_jax.training.step import init_state, make_train_step

ROOT = Path(__file__).parents[2]
RECIPES = [
    f"{name}:{variant}" if variant else name
    for name in sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    for variant in getattr(importlib.import_module(f"configs.{name}"), "VARIANTS", [""])
]
# What the docstrings say, in millions.
PARAMETERS = {"sky_timelapse": 859.7, "sky_timelapse:small": 41.36, "ucf101": 41.4, "ucf101:latents": 859.8}


def config_of(recipe):
    name, _, variant = recipe.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(*filter(None, [variant]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_full_step_has_shapes(recipe):
    config = build(TrainConfig, config_of(recipe).to_dict())
    model = VDT(**vars(config.model))
    check_batch_size(config.batch_size, make_mesh(1), config.grad_accum)
    optimizer = make_optimizer(
        make_learning_rate(total_steps=config.total_steps, **vars(config.learning_rate)), **vars(config.optimizer)
    )
    diffusion = make_diffusion(**vars(config.diffusion), learn_sigma=model.learn_sigma)
    step = make_train_step(model, diffusion, optimizer, grad_accum=config.grad_accum, **vars(config.loss))
    state = jax.eval_shape(functools.partial(init_state, model, optimizer), jax.random.key(0))
    batch = {
        "video": jax.ShapeDtypeStruct((config.batch_size, *model.video_shape), np.float32),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert after == state and metrics["loss"].shape == ()
    assert count_trained(state.params) / 1e6 == pytest.approx(
        PARAMETERS.get(recipe, count_trained(state.params) / 1e6), abs=0.1
    )


def test_the_dit_variant_has_the_values_of_its_trainer():
    """train.py of facebookresearch/DiT: AdamW(lr=1e-4, weight_decay=0), update_ema(decay=0.9999), batches of 256."""
    ours, dit = (build(TrainConfig, config_of(f"sky_timelapse:{name}").to_dict()) for name in ("", "dit"))
    assert dit.optimizer == OptimizerOptions("adamw", weight_decay=0.0, clip_norm=0.0, b2=0.999)
    assert dit.learning_rate == LearningRateOptions(peak=1e-4, warmup_steps=0, decay="constant")
    assert (dit.ema_decay, dit.ema_warmup, dit.batch_size, dit.seed) == (0.9999, False, 256, 0)
    assert dit.diffusion == DiffusionOptions("linear", 1000, "eps") and dit.model.learn_sigma
    assert dit.loss == LossOptions("parity", "official", label_dropout=0.1, noise_shift=1.0)
    assert (dit.data["crop"], dit.data["random_flip"], dit.data["random_crop"]) == ("dit", True, None)
    assert dit.model.dtype == "float32"
    assert dataclasses.replace(dit.model, dtype="bfloat16") == ours.model and ours.ema_warmup


def train_shrunk(recipe, workdir, *arguments):
    """Two steps on random clips in place of the data set, and without the autoencoder; what is printed."""
    name, _, variant = recipe.partition(":")
    file = workdir.parent / f"{workdir.name}.py"
    file.write_text(
        f"from ml_collections import ConfigDict\nfrom configs import {name}\n\n"
        f"def get_config():\n    config = {name}.get_config({repr(variant) if variant else ''})\n"
        "    config.data = ConfigDict(dict(name='synthetic'))\n    config.model.num_classes = 1\n    return config\n"
    )
    small = ["--config.grad_accum=1", "--config.total_steps=2", *SHRUNK, *arguments]
    return succeed("train.py", f"--config={file}", f"--workdir={workdir}", *small)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if not recipe.endswith(":from_image")])
def test_it_trains_and_previews_shrunk(recipe, tmp_path):
    train_shrunk(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(np.isfinite(line["loss"]) for line in lines)
    assert len(list((tmp_path / "run" / "samples" / "step_0000002").glob("*.gif"))) == 7


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.endswith(":from_image")])
def test_two_stages(recipe, tmp_path):
    """Images, then video from them: what the image model does not have is named, and all the rest is its own."""
    still = ["--config.preview.every=0"]
    train_shrunk(recipe.replace(":from_image", ":image"), tmp_path / "image", *still)
    video = [f"--config.init_from={tmp_path}/image", "--config.learning_rate.peak=0", *still]
    said = train_shrunk(recipe, tmp_path / "video", *video)
    fresh = next(line for line in said.splitlines() if line.startswith("parameters from")).partition("fresh: ")[2]
    image, video = (load_model(tmp_path / name)[1] for name in ("image", "video"))
    ours, theirs = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)} for tree in (video, image)
    )
    assert set(fresh.split(", ")) == ours.keys() - theirs.keys()
    assert "time_embed" in fresh and "blocks/temporal_attn/qkv/kernel" in fresh
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("recipe", "source", "expected"),
    [
        ("video_folder_tiny", "moving_digits", {}),
        ("moving_digits", "video_folder", {}),
        ("moving_digits", "moving_digits", {"num_digits": 1}),
        ("sky_timelapse", "tfds:folder", {"stride": 1}),
        ("sky_timelapse", "synthetic", {}),
    ],
)
def test_any_recipe_can_be_given_any_source(recipe, source, expected, monkeypatch):
    """What the recipe says to its own source is left out where another does not take it."""

    def data(*arguments):
        line = ["train.py", f"--config={ROOT}/configs/{recipe}.py", f"--config.data.name={source}", *arguments]
        monkeypatch.setattr("sys.argv", line)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, flag_values=values)
        values(line)
        monkeypatch.setattr(cli.flags, "FLAGS", values)
        return {key: value for key, value in cli.values_of_config()["data"].items() if value not in (None, "")}

    assert data() == {"name": source} | expected
    assert data("--config.data.short=pad") == {"name": source, "short": "pad"} | expected  # what the user says stays
    with pytest.raises(UserError, match="no data source 'imagenet'"):
        data("--config.data.name=imagenet")


def test_a_variant_that_there_is_not(tmp_path):
    line = fail("train.py", f"--config={ROOT}/configs/sky_timelapse.py:42gb", f"--workdir={tmp_path}/run")
    assert "sky_timelapse has no variant '42gb': write configs/sky_timelapse.py:NAME, NAME one of 24gb, small" in line
