"""Checkpoints: kept, verified, skipped, set aside; and model folders."""

import asyncio
import functools
import re
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath
from helpers.checkpoint_damage import assert_same, damaged_corpus, files_of, logged, save_steps, small_state

from vdt_jax.checkpoints import load_config, load_model, newest_checkpoint, save_config, save_model
from vdt_jax.checkpoints import manager as manager_module
from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.checkpoints.manifest import MANIFEST, damage, finished_steps, write_manifest
from vdt_jax.errors import RunStopped, UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import make_optimizer
from vdt_jax.training.step import init_state

SIZES = dict(input_size=(4, 4), num_frames=2, in_channels=1, patch_size=2, hidden_size=8, depth=2, num_heads=2)
OPTIMIZER = make_optimizer(optax.constant_schedule(1e-3))


@pytest.fixture(scope="module")
def state():
    state = jax.jit(functools.partial(init_state, VDT(**SIZES), OPTIMIZER))(jax.random.key(0))
    return state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.params))


@pytest.fixture
def run(tmp_path):
    """A working directory with the steps 1 and 2."""
    save_steps(tmp_path, (1, 2))
    return tmp_path


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def restored(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(small_state(0))


def test_load_model_gives_the_newest_ema(state, tmp_path):
    save_config(tmp_path, {"model": SIZES})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (9, 10, 100):
            ema_params = jax.tree.map(lambda x, step=step: x + step, state.params)
            checkpoints.save(state.replace(step=jnp.int32(step), ema_params=ema_params))
    assert names(tmp_path) == ["10", "100"]
    model, params = load_model(tmp_path)
    assert model == VDT(**SIZES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 100), params, state.params)
    _, older = load_model(tmp_path / "checkpoints" / "10")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 10), older, state.params)
    with logged() as said:
        (tmp_path / "checkpoints" / "100" / "training" / "manifest.ocdbt").write_bytes(b"")  # sampling does not read it
        changed = tmp_path / "checkpoints" / "100" / "ema_params" / "manifest.ocdbt"
        changed.write_bytes(changed.read_bytes()[::-1])
        assert newest_checkpoint(tmp_path).name == "10"
    assert len(said) == 1 and re.search("100 is damaged .*manifest.ocdbt was changed", said[0])


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(small_state(1))
        checkpoints.save(small_state(1).replace(params=None))
        assert_same(checkpoints.restore(small_state(0)), small_state(1))


def test_the_newest_and_every_so_many_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(small_state(step))
    assert names(tmp_path) == ["10", "4", "8", "9"]


def test_checkpoints_that_are_removed_while_a_run_saves(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, removed in ((1, "2"), (2, "checkpoints/2"), (3, "checkpoints"), (4, "")):
            checkpoints.save_and_wait(small_state(step))
            if removed and (tmp_path / removed).exists():
                shutil.rmtree(tmp_path / removed)
    assert names(tmp_path) == ["4"]
    assert_same(restored(tmp_path), small_state(4))


def test_a_file_in_place_of_the_checkpoints(run):
    with logged() as said, Checkpoints(run) as checkpoints:
        (run / "checkpoints").rename(run / "aside")
        (run / "checkpoints").touch()
        checkpoints._fail(3, NotADirectoryError(20, "Not a directory"))  # Orbax itself takes minutes to fail
    assert len(said) == 1 and "saving step 3 failed" in said[0] and "checkpoint is none; the save is retried" in said[0]
    with pytest.raises(UserError, match=r"checkpoints cannot be written \(File exists\)"):
        Checkpoints(run)


def test_nothing_to_restore(tmp_path):
    assert restored(tmp_path) is None


def test_what_was_not_finished_is_passed_over_and_written_anew(run):
    (run / "checkpoints" / "2" / MANIFEST).unlink()
    with logged() as said:
        assert_same(restored(run), small_state(1))
    assert len(said) == 1 and "2 has no manifest.json: it is not finished" in said[0]
    assert names(run) == ["1", "2"]
    save_steps(run, (2,))
    assert_same(restored(run), small_state(2))


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(run):
    for copy in ("2.DAMAGED", "2.DAMAGED-2"):
        data = next(path for path in files_of(run / "checkpoints" / "2") if "/d/" in str(path))
        size = data.stat().st_size
        data.write_bytes(data.read_bytes()[:-1])
        with logged() as said:
            assert_same(restored(run), small_state(1))
        assert len(said) == 1 and f"has {size - 1} bytes in place of {size}" in said[0] and copy in said[0]
        assert data.name in (run / "checkpoints" / copy / "DAMAGED").read_text()
        save_steps(run, (2,))
    assert names(run) == ["1", "2", "2.DAMAGED", "2.DAMAGED-2"]
    assert_same(restored(run), small_state(2))


def test_every_damage_is_found_out():
    assert damaged_corpus(40, seed=1).total() == 40


@pytest.mark.slow
def test_two_thousand_damages_are_found_out():
    assert damaged_corpus(2000, seed=0).total() == 2000


def test_hosts_hash_what_they_wrote(tmp_path):
    """Two hosts, here two threads: the second writes its part, the first the manifest, whichever comes first."""
    folder = epath.Path(tmp_path) / "7"
    for name in ("training/ocdbt.process_0/d/a", "training/ocdbt.process_1/d/b", "training/_METADATA"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    first = threading.Thread(target=write_manifest, args=(folder, 7, 0, 2))
    first.start()
    assert finished_steps(folder.parent) == []
    write_manifest(folder, 7, 1, 2)
    first.join()
    assert finished_steps(folder.parent) == [7] and damage(folder, 7) is None
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "training"]
    (folder / "training/ocdbt.process_1/d/b").write_text("training/ocdbt.process_1/d/c")
    assert damage(folder, 7) == "training/ocdbt.process_1/d/b was changed"


def test_a_failed_save_is_told_and_tried_again(run, monkeypatch):
    with logged() as said, Checkpoints(run, every=100) as checkpoints:
        with monkeypatch.context() as broken:
            broken.setattr(manager_module, "write_manifest", _no_space)
            checkpoints.save(small_state(100))
            checkpoints.wait()
        assert len(said) == 1 and "saving step 100 failed (1 of 5 in a row): [Errno 28] no space" in said[0]
        assert names(run) == ["1", "2"]
        assert [step for step in range(101, 131) if checkpoints.due(step)] == [110, 120, 130]
        checkpoints.save(small_state(110))
        checkpoints.wait()
        assert [step for step in range(111, 201) if checkpoints.due(step)] == [200]
    assert_same(restored(run), small_state(110))


def test_writes_that_end_after_their_save_failed_are_not_printed(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: printed.append(str(error.exc_value)))
    with Checkpoints(tmp_path):
        end_a_write_whose_loop_is_closed()
        assert printed == []
        FailsAtItsEnd()
        assert printed == ["division by zero"]
    end_a_write_whose_loop_is_closed()
    assert printed == ["division by zero", "Event loop is closed"]


class FailsAtItsEnd:
    def __del__(self):
        _ = 1 / 0


def end_a_write_whose_loop_is_closed():
    """What happens where a save fails because of another write."""
    promise, future = ts.Promise.new()

    async def wait():
        await future

    async def fail():
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return waiting

    loop = asyncio.new_event_loop()
    loop.run_until_complete(fail())
    loop.close()
    promise.set_result(None)


def test_a_mistake_in_the_code_is_no_failed_save(run, monkeypatch):
    monkeypatch.setattr(manager_module, "write_manifest", lambda: None)  # called with other arguments
    with logged() as said, pytest.raises(TypeError, match="positional argument"), Checkpoints(run) as checkpoints:
        checkpoints.save(small_state(3))
    assert said == [] and names(run) == ["1", "2", "3"]


def test_a_failed_save_does_not_cost_the_last_good_checkpoint(tmp_path, monkeypatch):
    with logged() as said, Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save_and_wait(small_state(1))
        monkeypatch.setattr(manager_module, "write_manifest", _no_space)
        checkpoints.save(small_state(2))
    assert len(said) == 1 and names(tmp_path) == ["1"]


def test_too_many_failed_saves_end_the_run(run, monkeypatch):
    monkeypatch.setattr(manager_module, "write_manifest", _no_space)
    monkeypatch.setattr(manager_module.time, "sleep", lambda _: None)
    with (
        logged() as said,
        pytest.raises(RunStopped, match=r"5 saves in a row failed.* checkpoint is .*/2$") as stop,
    ):
        Checkpoints(run).save_and_wait(small_state(3))
    assert ["retried" in line for line in said] == [True] * 4 + [False]
    assert stop.value.code == 3 and len(said) == 5 and names(run) == ["1", "2"]


def _no_space(*_):
    raise OSError(28, "no space")


@pytest.mark.parametrize("part", ["params", "ema_params", "opt_state"])
def test_what_is_not_finite_is_never_written(run, part):
    state = small_state(3)
    bad = getattr(state, part) | {"b": jnp.full(7, jnp.nan)}
    with (
        Checkpoints(run) as checkpoints,
        pytest.raises(RunStopped, match=f"{part}/b is not finite after step 3.*checkpoints/2$"),
    ):
        checkpoints.save(state.replace(**{part: bad}))
    assert names(run) == ["1", "2"]


def test_a_model_on_its_own(state, tmp_path):
    save_model(tmp_path / "m", {"model": SIZES, "note": "x"}, state.params)
    model, params = load_model(tmp_path / "m")
    assert load_config(tmp_path / "m")["note"] == "x" and model.frame_size == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    by_orbax = ocp.StandardCheckpointer().restore(tmp_path / "m" / "params", params)
    jax.tree.map(np.testing.assert_array_equal, by_orbax, params)


def test_a_model_folder_does_not_say_where_it_was_written(state, tmp_path):
    save_model(tmp_path / "m", {"model": SIZES}, state.params)
    files = files_of(tmp_path / "m")
    assert len(files) > 5 and not [path for path in files if bytes(tmp_path) in path.read_bytes()]
    assert "commit_success" not in (tmp_path / "m" / MANIFEST).read_text()


def test_what_is_not_a_checkpoint_is_refused(state, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_model(tmp_path / "nowhere")
    save_config(tmp_path / "empty", {"model": SIZES})
    with pytest.raises(UserError, match="yet"):
        load_model(tmp_path / "empty")
    save_model(tmp_path / "other", {"model": SIZES | {"hidden_size": 16}}, state.params)
    with pytest.raises(UserError, match=r"parameters in .* do not fit its config.json"):
        load_model(tmp_path / "other")


def test_a_checkpoint_without_a_manifest_is_read_where_it_is_named(state, tmp_path):
    save_config(tmp_path, {"model": SIZES})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(step=jnp.int32(5)))
    folder = tmp_path / "checkpoints" / "5"
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=f"to load it anyway, give its path: {folder}"):
        load_model(tmp_path)
    _, params = load_model(folder)
    jax.tree.map(np.testing.assert_array_equal, params, state.ema_params)
    assert newest_checkpoint(folder).name == "5" and load_config(folder)["model"]["depth"] == 2
