"""Resuming: which settings may differ from those of the working directory."""

import pytest
from etils import epath

from vdt_jax.checkpoints import save_config
from vdt_jax.errors import UserError
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.start import check_same_run

CONFIG = TrainConfig().as_json()


def changed(section, **values):
    return CONFIG | {section: CONFIG[section] | values}


@pytest.fixture
def workdir(tmp_path):
    save_config(tmp_path, CONFIG | {"autoencoder": "abc"})
    return epath.Path(tmp_path)


def test_a_new_working_directory_takes_any_config(tmp_path):
    check_same_run(epath.Path(tmp_path), CONFIG)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CONFIG | {"total_steps": 7, "mesh": {"fsdp": 4}, "preview": {"every": 0}},
        changed("model", unroll=3, remat="full"),
        changed("data", options={}, path=None),
        CONFIG | {"autoencoder": "abc"},
    ],
)
def test_what_may_differ(workdir, config):
    check_same_run(workdir, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"seed": 1}, r"belongs to a run with seed=0 \(now 1\): choose another --workdir, or the same values"),
        (changed("model", depth=3), r"model\.depth=12 \(now 3\)"),
        (changed("data", path="x"), r"data\.path=None \(now x\)"),
        (CONFIG | {"autoencoder": "abd"}, r"autoencoder=abc \(now abd\)"),
    ],
)
def test_what_makes_it_another_run(workdir, config, message):
    with pytest.raises(UserError, match=message):
        check_same_run(workdir, config)


def test_a_run_from_before_the_autoencoder_was_recorded(tmp_path):
    save_config(tmp_path, CONFIG)
    check_same_run(epath.Path(tmp_path), CONFIG | {"autoencoder": "abc"})
