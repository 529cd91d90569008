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


def begun(path, config, content="checkpoints/2000"):
    save_config(path, config)
    (path / content).mkdir(parents=True)
    return epath.Path(path)


@pytest.fixture
def workdir(tmp_path):
    return begun(tmp_path, CONFIG | {"autoencoder": "abc"})


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


@pytest.mark.parametrize("content", [b"", b'{"seed": 0, "mod', b"\xff{}", b"[1]", b"{}"])
def test_a_damaged_config_ends_in_one_line(workdir, content):
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json(: it describes no model| cannot be read \(.*\): it is damaged)"):
        check_same_run(workdir, CONFIG)


def test_parameters_that_start_fresh_need_others_that_do_not():
    run = SimpleNamespace(config=TrainConfig(init_fresh="time_embed"), _fresh=["time_embed"])
    with pytest.raises(UserError, match="init_fresh=time_embed needs init_from, a folder of parameters: name both"):
        Run.check_init_from(run)


def test_a_run_from_before_the_autoencoder_was_recorded(tmp_path):
    check_same_run(begun(tmp_path, CONFIG), CONFIG | {"autoencoder": "abc"})


def test_a_run_from_before_a_key_has_its_default(tmp_path):
    old = {key: value for key, value in CONFIG.items() if key not in ("ema_warmup", "validation")}
    workdir = begun(tmp_path, old | {"optimizer": {"name": "adamw"}})
    check_same_run(workdir, CONFIG)
    with pytest.raises(UserError, match=r"ema_warmup=True \(now False\), optimizer\.clip_norm=1\.0 \(now 0\.0\)"):
        check_same_run(workdir, changed("optimizer", clip_norm=0.0) | {"ema_warmup": False})


def test_a_run_that_failed_before_its_first_checkpoint_may_be_corrected(tmp_path):
    check_same_run(begun(tmp_path, CONFIG, "checkpoints/2000.orbax-checkpoint-tmp"), CONFIG | {"seed": 1})
    for other in ("checkpoints/2000.DAMAGED", "params"):
        with pytest.raises(UserError, match=r"seed=0 \(now 1\)"):
            check_same_run(begun(tmp_path / other, CONFIG, other), CONFIG | {"seed": 1})


HERE = CONFIG | {"data": {"name": "video_folder", "path": "/data/sky"}, "clips": {"train": "9 a", "held_out": "1 b"}}


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        (HERE | {"data": {"name": "video_folder", "path": "sky", "held_out_path": "x"}}, None),
        (CONFIG | {"data": {"name": "video_folder", "path": "sky"}}, None),  # before the data is opened
        (HERE | {"data": {"name": "video_folder", "path": "/data/sky", "hop": 2}}, r"data\.hop=None \(now 2\)"),
        (HERE | {"data": {"name": "latents", "path": "sky"}}, r"data\.name=video_folder \(now latents\)"),
        (HERE | {"clips": {"train": "8 c", "held_out": "1 b"}}, r"clips\.train=9 a \(now 8 c\)"),
        (HERE | {"data": HERE["data"] | {"path": "sky"}, "clips": None}, r"data\.path=/data/sky \(now sky\)"),
    ],
)
def test_data_is_what_it_holds_not_where_it_is(tmp_path, moved, message):
    workdir = begun(tmp_path, HERE)
    if message is None:
        return check_same_run(workdir, moved)
    with pytest.raises(UserError, match=message):
        check_same_run(workdir, moved)


def test_a_dataset_that_moved(tmp_path):
    workdir = begun(tmp_path, HERE | {"data": {"name": "tfds:/data/sky"}})
    check_same_run(workdir, HERE | {"data": {"name": "tfds:sky"}})


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
        f"step 4 is skipped: loss nan, gradient norm 2; 7 skipped in total, 1 in a row; clips {first}, {second}"
    ]


def test_too_many_in_a_row_end_the_run(said):
    with pytest.raises(
        RunStopped, match=r"5 steps in a row, up to step 9, .* last good checkpoint is run/checkpoints/2"
    ) as stop:
        Run.report_skipped(RUN, 9, metrics(MAX_SKIPPED), NEWEST)
    assert stop.value.code == 3 and len(said) == 1
