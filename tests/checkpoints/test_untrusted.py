"""Model folders from strangers: one line or the model, and nothing outside of the folder is opened."""

import os
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from helpers import hostile_folders
from helpers.hostile_folders import CONFIG, cases, outcome

from vdt_jax.checkpoints import load_config, load_model, save_model
from vdt_jax.checkpoints.config import check_config, network_of
from vdt_jax.checkpoints.manifest import damage
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import param_shapes

QUICK = 10  # every tenth case runs in `make test`


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    rng = np.random.default_rng(0)
    shapes = param_shapes(network_of(CONFIG["model"]))
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    folder = tmp_path_factory.mktemp("good") / "model"
    save_model(folder, CONFIG, params)
    return folder, params


def refuse(chosen, good, tmp_path):
    failures = []
    for number, (name, change, must_name) in enumerate(chosen):
        place, outside = tmp_path / f"{number}", tmp_path / f"{number}" / "outside"
        outside.mkdir(parents=True)
        os.mkfifo(outside / "fifo")
        folder = shutil.copytree(good, place / "model")
        change(folder, outside)
        try:
            found = outcome(folder)
            if must_name is not None and (found == "loaded" or must_name not in found):
                failures.append(f"{name}: {found[:200]}")
        except BaseException as error:
            failures.append(f"{name}: {error!r:.300}")
        shutil.rmtree(place)
    return failures


def test_a_good_folder_is_loaded(good):
    folder, params = good
    assert outcome(folder) == "loaded" and damage(epath.Path(folder), 0) is None
    jax.tree.map(np.testing.assert_array_equal, load_model(folder)[1], params)


def test_configs_of_runs_are_accepted():
    data = {"name": "video_folder", "path": "/x", "random_crop": 0.5, "random_flip": True, "stride": 1, "fps": 10}
    data |= {"held_out": 0.1, "labels": None, "memory_limit": 3000, "short": "pad", "options": {"mine": [1]}, "own": []}
    check_config(
        CONFIG | {"data": data, "loss": {"label_dropout": 1, "mask_mixture": "official"}, "autoencoder": "0" * 64}
    )
    for name in ("moving_digits", "my_package.my_module:MyClips"):
        check_config(CONFIG | {"data": {"name": name, "path": "", "num_digits": 2}, "a_key_of_later": 3})


def test_a_share_of_the_hostile_folders(good, tmp_path):
    every = list(cases())
    assert len(every) > 250
    failures = refuse(every[::QUICK], good[0], tmp_path)
    assert failures == [], "\n".join(failures)


@pytest.mark.slow
def test_all_the_hostile_folders(good, tmp_path):
    failures = refuse(cases(), good[0], tmp_path)
    assert failures == [], "\n".join(failures)


def test_links_of_a_working_directory(good, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    (outside / "5").mkdir(parents=True)
    shutil.copytree(good[0] / "params", outside / "5" / "ema_params")
    run.mkdir()
    shutil.copy(good[0] / "config.json", run)
    (run / "checkpoints").symlink_to(outside)
    for path in (run, run / "checkpoints" / "5"):
        with pytest.raises(UserError, match=r"checkpoints is a symbolic link, and .*: copy the file there"):
            load_model(path)
    (run / "checkpoints").unlink()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "5").symlink_to(outside / "5")
    with pytest.raises(UserError, match="5 is a symbolic link"):
        load_model(run / "checkpoints" / "5")
    (run / "checkpoints" / "5").unlink()
    shutil.copytree(outside / "5", run / "checkpoints" / "5")
    jax.tree.map(np.testing.assert_array_equal, load_model(run / "checkpoints" / "5")[1], good[1])
    os.mkfifo(run / "checkpoints" / "5" / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json is a FIFO"):
        load_model(run)
    (tmp_path / "link").symlink_to(good[0])  # of the user, not of a stranger
    assert outcome(tmp_path / "link") == "loaded" and load_config(tmp_path / "link") == CONFIG


def test_the_helpers_notice_what_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_folders, "SECONDS", 1)
    monkeypatch.setattr(hostile_folders, "load_config", lambda folder: (folder / "fifo").read_text())
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(hostile_folders.TooLong):
        outcome(tmp_path)
