"""Runs: which settings may differ in a working directory that is resumed; what is said of skipped steps."""

import logging
from types import SimpleNamespace

import pytest
from etils import epath

from vdt_jax.checkpoints import save_config
from vdt_jax.data.pipeline import clip_numbers
from vdt_jax.errors import RunStopped, UserError
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.run import MAX_SKIPPED, Run, check_same_run

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


RUN = SimpleNamespace(config=TrainConfig(batch_size=2, seed=3), source=range(100))
NEWEST = "run/checkpoints/2".format


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("vdt_jax.training.run"), "warning", lines.append)
    return lines


def metrics(in_a_row):
    return {"skipped_in_a_row": in_a_row, "skipped": 7, "loss": float("nan"), "grad_norm": 2.0}


def test_a_good_step_is_not_reported(said):
    Run.report_skipped(RUN, 4, metrics(0), NEWEST)
    assert said == []


def test_a_skipped_step_is_reported_with_its_clips(said):
    Run.report_skipped(RUN, 4, metrics(1), NEWEST)
    first, second = clip_numbers(100, 3, range(6, 8))
    assert said == [
        f"step 4 is skipped: loss nan, gradient norm 2; 7 skipped in all, 1 in a row; clips {first}, {second}"
    ]


def test_too_many_in_a_row_end_the_run(said):
    with pytest.raises(
        RunStopped, match=r"5 steps in a row, the last 9, .* last good checkpoint is run/checkpoints/2"
    ) as stop:
        Run.report_skipped(RUN, 9, metrics(MAX_SKIPPED), NEWEST)
    assert stop.value.code == 3 and len(said) == 1
