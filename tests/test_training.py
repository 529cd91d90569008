"""The training step: it learns, resumes exactly, and does not depend on the number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdt_jax.checkpoints import Checkpoints
from vdt_jax.data import make_source
from vdt_jax.data.pipeline import batches
from vdt_jax.diffusion import make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.models import FROZEN_PARAMS, VDT
from vdt_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated, shard_batch
from vdt_jax.training import init_state, loss_fn, make_learning_rate, make_optimizer, make_train_step

MODEL = VDT(input_size=16, num_frames=4, in_channels=1, patch_size=8, hidden_size=32, depth=2, num_heads=2)
DIFFUSION = make_diffusion()
OPTIMIZER = make_optimizer(optax.constant_schedule(3e-3))
KEY = jax.random.key(7)


@functools.cache
def compiled(num_devices):
    mesh = make_mesh(num_devices)
    step = make_train_step(MODEL, DIFFUSION, OPTIMIZER, ema_decay=0.9)
    shardings = (replicated(mesh), batch_sharding(mesh), replicated(mesh))
    return mesh, jax.jit(step, in_shardings=shardings, out_shardings=replicated(mesh))


def data(first_step=0):
    source = make_source({"name": "moving_digits"}, MODEL.video_shape, "train")
    return batches(source, batch_size=8, seed=0, first_step=first_step)


def fresh(mesh):
    return jax.device_put(init_state(MODEL, OPTIMIZER, jax.random.key(0)), replicated(mesh))


def run(num_steps, num_devices=1, state=None):
    mesh, step = compiled(num_devices)
    state = fresh(mesh) if state is None else state
    losses, stream = [], data(int(state.step))
    for _ in range(num_steps):
        state, metrics = step(state, shard_batch(next(stream), mesh), KEY)
        losses.append(float(metrics["loss"]))
    return state, losses


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_loss_falls():
    _, losses = run(60)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_ema_is_warmed_up():
    before = fresh(compiled(1)[0])
    one, _ = run(1)
    two, _ = run(1, state=one)
    # Decay (1 + step) / (10 + step): a tenth of the first weights are left, then 2/11 of what there was.
    first = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, before.params, one.params)
    second = jax.tree.map(lambda a, b: 2 / 11 * a + 9 / 11 * b, first, two.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), two.ema_params, second)


def test_resumed_equals_uninterrupted(tmp_path):
    whole, losses = run(6)
    half, first = run(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half)
    mesh, _ = compiled(1)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), fresh(mesh))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like)
    assert_equal(restored, half)
    resumed, second = run(3, state=restored)
    assert_equal(resumed, whole)
    assert first + second == losses


def test_eight_devices_equal_one():
    one, losses_of_one = run(5, 1)
    eight, losses_of_eight = run(5, 8)
    np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-5)
    assert len(jax.tree.leaves(eight.params)[0].sharding.device_set) == 8

    def compare(path, a, b):
        if "'qkv'" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path):
            return  # the key third has gradient zero, of which AdamW makes full steps in the direction of rounding
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, jax.device_get(one.params), jax.device_get(eight.params))


def test_tables_are_never_trained():
    state, _ = run(2)
    before = fresh(compiled(1)[0])
    for name in FROZEN_PARAMS:
        np.testing.assert_array_equal(state.params[name], before.params[name])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["blocks"], before.params["blocks"])
    assert moved["adaLN_modulation"]["kernel"]


def test_draws_differ_from_step_to_step_and_key_to_key():
    mesh, step = compiled(1)
    batch = shard_batch(next(data()), mesh)
    runs = [(0, KEY), (1, KEY), (0, jax.random.key(8))]
    losses = {float(step(fresh(mesh).replace(step=jnp.int32(i)), batch, key)[1]["loss"]) for i, key in runs}
    assert len(losses) == 3


def test_labels_are_dropped_at_the_rate_asked_for():
    seen = []

    class Spy(VDT):
        def apply(self, variables, x_t, timesteps, labels):
            seen.append(labels)
            return jnp.zeros((*x_t.shape[:-1], 2))

    model = Spy(input_size=16, num_frames=4, in_channels=1, patch_size=8, num_classes=5)
    batch = {"video": jnp.zeros((400, 4, 16, 16, 1)), "labels": jnp.full(400, 3)}
    loss_fn(model, DIFFUSION, None, batch, KEY, label_dropout=0.25)
    assert set(np.unique(seen[0])) == {3, 5}
    assert (seen[0] == 5).mean() == pytest.approx(0.25, abs=0.07)


def test_noise_is_drawn_as_shifted():
    """The noise level that a sample was given shows in the timestep that the network is told."""
    seen = []

    class Watched(VDT):
        def __call__(self, x, timesteps, labels=None):
            seen.append(timesteps)
            return jnp.zeros((*x.shape[:-1], 2 * self.in_channels))

    model = Watched(input_size=8, num_frames=2, in_channels=1, patch_size=8, hidden_size=8, depth=1, num_heads=1)
    batch = {"video": jnp.zeros((512, *model.video_shape)), "labels": jnp.zeros(512, jnp.int32)}
    for shift in (1.0, 3.0):
        loss_fn(model, DIFFUSION, {}, batch, KEY, noise_shift=shift)
    even, shifted = (np.asarray(timesteps) for timesteps in seen)
    np.testing.assert_array_equal(shifted, DIFFUSION.schedule.shifted_steps(3.0)[even])


def test_learning_rate_warms_up_then_stays_or_falls():
    constant = make_learning_rate(1e-3, 10, 100, "constant")
    cosine = make_learning_rate(1e-3, 10, 100, "cosine")
    assert float(constant(0)) == 0 and float(constant(5)) == pytest.approx(5e-4)
    assert float(constant(99)) == pytest.approx(1e-3)
    assert float(cosine(10)) == pytest.approx(1e-3) and float(cosine(55)) == pytest.approx(5e-4)
    assert float(cosine(100)) == pytest.approx(0, abs=1e-9)
    tail = make_learning_rate(1e-3, 10, 100, "tail")
    assert float(tail(80)) == pytest.approx(1e-3)
    assert float(tail(90)) == pytest.approx(5e-4) and float(tail(100)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="'linear'"):
        make_learning_rate(1e-3, 10, 100, "linear")


def test_gradients_are_clipped():
    optimizer = make_optimizer(optax.constant_schedule(1.0), clip_norm=1e-12)
    params = {"w": jnp.ones(3), "pos_embed": jnp.ones(3)}
    grads = {"w": jnp.array([3.0, 4.0, 0.0]), "pos_embed": jnp.full(3, 1e9)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # Adam's epsilon is 1e-8: a gradient of 1e-12 moves 1e-4, an unclipped one 1.
    assert np.abs(updates["w"]).max() < 1e-3
    np.testing.assert_array_equal(updates["pos_embed"], 0)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match="batch_size=12"):
        check_batch_size(12, make_mesh())
