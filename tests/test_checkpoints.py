"""Checkpoints and models in folders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdt_jax.checkpoints import Checkpoints, load_config, load_model, save_config, save_model
from vdt_jax.errors import UserError
from vdt_jax.models import VDT
from vdt_jax.training import init_state, make_optimizer

SIZES = dict(input_size=(4, 4), num_frames=2, in_channels=1, patch_size=2, hidden_size=8, depth=2, num_heads=2)
OPTIMIZER = make_optimizer(optax.constant_schedule(1e-3))


@pytest.fixture(scope="module")
def state():
    state = init_state(VDT(**SIZES), OPTIMIZER, jax.random.key(0))
    return state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.params))


def test_load_model_gives_the_newest_ema(state, tmp_path):
    save_config(tmp_path, {"model": SIZES})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (9, 10, 100):
            ema_params = jax.tree.map(lambda x, step=step: x + step, state.params)
            checkpoints.save(state.replace(step=jnp.int32(step), ema_params=ema_params))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "100"]
    model, params = load_model(tmp_path)
    assert model == VDT(**SIZES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 100), params, state.params)


def test_saving_a_step_twice_keeps_the_first(state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.save(state)
        assert int(checkpoints.restore(state).step) == 0


def test_nothing_to_restore(state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None


def test_a_model_on_its_own(state, tmp_path):
    save_model(tmp_path / "m", {"model": SIZES, "note": "x"}, state.params)
    model, params = load_model(tmp_path / "m")
    assert load_config(tmp_path / "m")["note"] == "x" and model.frame_size == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_what_is_not_a_checkpoint_is_refused(state, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_model(tmp_path / "nowhere")
    save_config(tmp_path / "empty", {"model": SIZES})
    with pytest.raises(UserError, match="yet"):
        load_model(tmp_path / "empty")
    save_model(tmp_path / "other", {"model": SIZES | {"hidden_size": 16}}, state.params)
    with pytest.raises(UserError, match="does not hold the model of its config"):
        load_model(tmp_path / "other")
