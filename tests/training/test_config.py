"""A run's description: what is wrong in it gets one line, before anything is compiled or opened."""

import dataclasses

import pytest

from configs import default, moving_digits
from vdt_jax.errors import UserError
from vdt_jax.options import build
from vdt_jax.training.config import LearningRateOptions, RunOptions, TrainConfig


def of(**values):
    """The values of a recipe, with others for `section__key` or `key`."""
    config = moving_digits.get_config()
    for name, value in values.items():
        *sections, key = name.split("__")
        part = config[sections[0]] if sections else config
        with part.ignore_type():
            part[key] = value
    return config.to_dict()


def test_python_and_a_recipe_describe_the_same_run():
    ours = TrainConfig(learning_rate=LearningRateOptions(peak=1), data={"name": "moving_digits"})
    theirs = default.get_config()
    theirs.learning_rate.peak = 1.0
    theirs.data = {"name": "moving_digits"}
    assert build(TrainConfig, theirs.to_dict()) == ours
    assert type(ours.learning_rate.peak) is float and ours.model.input_size == (32, 32)


def test_config_json_has_the_keys_of_the_recipe():
    values = of()
    json = build(TrainConfig, values).as_json()
    assert json == values | {"model": values["model"] | {"input_size": [32, 32]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate__peak": -1}, "learning_rate.peak must be >= 0, got -1.0"),
        ({"learning_rate__peak": 1e30}, "learning_rate.peak must be <= 1, got 1e+30"),
        ({"learning_rate__warmup_steps": -5}, "learning_rate.warmup_steps must be >= 0, got -5"),
        ({"learning_rate__decay": "linear"}, "learning_rate.decay must be one of constant, cosine, tail, got 'linear'"),
        ({"optimizer__name": "lion"}, "optimizer.name must be one of adamw, muon, got 'lion'"),
        ({"optimizer__b2": 1.5}, "optimizer.b2 must be < 1, got 1.5"),
        ({"optimizer__weight_decay": float("nan")}, "optimizer.weight_decay must be a finite number, got nan"),
        ({"optimizer__clip_norm": -1}, "optimizer.clip_norm must be >= 0, got -1.0"),
        ({"ema_decay": 2.0}, "ema_decay must be <= 1, got 2.0"),
        ({"loss__label_dropout": 7}, "loss.label_dropout must be <= 1, got 7.0"),
        ({"loss__noise_shift": -1}, "loss.noise_shift must be > 0, got -1.0"),
        ({"loss__times": "normal"}, "loss.times must be one of uniform, logit_normal, got 'normal'"),
        ({"loss__given_noise": 1.5}, "loss.given_noise must be <= 1, got 1.5"),
        (
            {"diffusion__noise_schedule": "rectified_flow", "diffusion__prediction": "eps"},
            "prediction must be v or x_start with rectified_flow or zero_terminal_snr, got 'eps', which does not "
            "determine x_start in pure noise",
        ),
        (
            {"diffusion__zero_terminal_snr": True, "diffusion__noise_schedule": "cosine"}
            | {"diffusion__num_diffusion_timesteps": 1},
            "diffusion.num_diffusion_timesteps must be > 1 with rectified_flow or zero_terminal_snr, got 1",
        ),
        ({"diffusion__min_snr_gamma": 0}, "diffusion.min_snr_gamma must be > 0, got 0.0"),
        ({"diffusion__num_diffusion_timesteps": 0}, "diffusion.num_diffusion_timesteps must be >= 1, got 0"),
        ({"diffusion__num_diffusion_timesteps": 9.5}, "diffusion.num_diffusion_timesteps must be an integer, got 9.5"),
        (
            {"diffusion__num_diffusion_timesteps": 20, "diffusion__noise_schedule": "linear"},
            "diffusion.num_diffusion_timesteps must be > 20 with the linear schedule, got 20",
        ),
        ({"model__unroll": 0}, "model.unroll must be >= 1, got 0"),
        ({"model__mlp_ratio": float("nan")}, "model.mlp_ratio must be a finite number, got nan"),
        ({"model__input_size": (32,)}, "model.input_size must be (height, width), got (32,)"),
        ({"model__heads": 3}, "unknown option 'model.heads': did you mean 'model.num_heads'?"),
        ({"model": "VDT-S/2"}, "model must be a ModelOptions, got 'VDT-S/2'"),
        ({"data": {}}, "data.name must be a text, got None"),
        ({"data": "sky"}, "data must be a mapping, got 'sky'"),
        ({"data__fps": float("inf")}, "data.fps must be a finite number, got inf"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"seed": 2**64}, f"seed must be <= {2**63 - 1}, got {2**64}"),
        ({"batch_size": 10**21}, f"batch_size must be <= {2**31 - 1}, got {10**21}"),
        ({"model__num_frames": 10**9}, "model.num_frames must be <= 65536, got 1000000000"),
        ({"model__hidden_size": 10**9}, "model.hidden_size must be <= 65536, got 1000000000"),
        ({"preview__num_clips": 10**9}, "preview.num_clips must be <= 10000, got 1000000000"),
        ({"batch_size": True}, "batch_size must be an integer, got True"),
        ({"keep_every": 0}, "keep_every must be >= 1, got 0"),
        (
            {"preview__num_steps": 2000},
            "preview.num_steps must be <= diffusion.num_diffusion_timesteps=1000, got 2000",
        ),
        ({"bach_size": 3}, "unknown option 'bach_size': did you mean 'batch_size'?"),
    ],
)
def test_what_does_not_fit_gets_one_line(values, message):
    with pytest.raises(UserError) as error:
        build(TrainConfig, of(**values))
    assert str(error.value) == message


def test_more_steps_than_there_are_may_be_named_where_nothing_is_sampled():
    config = of(diffusion__num_diffusion_timesteps=10, preview__every=0, validation__every=0)
    assert build(TrainConfig, config).preview.num_steps == 25


def test_an_empty_text_is_none_at_all():
    config = build(TrainConfig, of(init_from="", vae=""))
    assert (config.init_from, config.vae, RunOptions(workdir="").workdir) == (None, None, None)


def test_a_config_cannot_be_changed():
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(UserError, match="stop_after must be >= 1, got -3"):
        RunOptions(stop_after=-3)
