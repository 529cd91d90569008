"""The training step: it learns, resumes exactly, and does not depend on the devices or how it is spread over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_run import (
    DIFFUSION,
    KEY,
    MUON,
    OPTIMIZER,
    assert_equal,
    compiled,
    data,
    first_state,
    fresh,
    run,
    twenty_steps,
)
from jax.sharding import PartitionSpec

from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.distributed.mesh import (
    check_batch_size,
    make_mesh,
    on_one_device,
    path_name,
    shard_batch,
    state_shardings,
    with_shardings,
)
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import FROZEN_PARAMS, VDT
from vdt_jax.training.optimizer import count_trained, make_learning_rate, make_optimizer, trained_params
from vdt_jax.training.step import draw_examples, init_state, loss_fn, update_ema


def test_the_first_state_is_computed_with_a_scan_over_the_blocks():
    models = [VDT(input_size=4, num_frames=2, hidden_size=8, depth=2, num_heads=1, unroll=n) for n in (1, 2)]
    scanned, unrolled = (str(jax.make_jaxpr(lambda key, m=m: init_state(m, OPTIMIZER, key))(KEY)) for m in models)
    assert "length=2" in scanned and scanned == unrolled


def test_loss_falls():
    losses = [loss for loss, _ in run(60)[1]]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_ema_is_warmed_up():
    before = fresh(compiled()[0])
    one, _ = run(1)
    two, _ = run(1, state=one)
    # Decay (1 + step) / (10 + step): a tenth of the first weights are left, then 2/11 of what there was.
    first = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, before.params, one.params)
    second = jax.tree.map(lambda a, b: 2 / 11 * a + 9 / 11 * b, first, two.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), two.ema_params, second)


def test_ema_without_warm_up_has_its_decay_from_the_start():
    ema = update_ema({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, jnp.int32(0), 0.9999, warmup=False)
    np.testing.assert_allclose(ema["w"], 1e-4, rtol=1e-3)
    assert update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, jnp.int32(0), 0.9999)["w"] > 0.8


def test_resumed_equals_uninterrupted(tmp_path):
    whole, losses = run(6)
    half, first = run(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half)
    mesh, _ = compiled()
    like = with_shardings(first_state(), state_shardings(first_state(), mesh))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like)
    assert_equal(restored, half)
    resumed, second = run(3, state=restored)
    assert_equal(resumed, whole)
    assert first + second == losses


# "accumulation" is on two by two devices: FSDP and data parallelism are in it.
@pytest.mark.parametrize(
    "setup", [*(pytest.param(setup, marks=pytest.mark.slow) for setup in ("data parallel", "fsdp")), "accumulation"]
)
def test_every_setup_equals_one_device(setup):
    first, last, metrics = twenty_steps()
    their_first, one = run(1, setup)
    their_last, others = run(19, setup, state=their_first)
    np.testing.assert_allclose(one + others, metrics, rtol=1e-5)

    # After one step the first moment is a tenth of the gradient.
    ours, theirs = (jax.tree.leaves(state.opt_state) for state in jax.device_get((first, their_first)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(np.abs(a).max(), 1e-3))

    def compare(path, a, b):
        if path_name(path).endswith("qkv/bias"):  # the key third has gradient zero: AdamW makes full steps of rounding
            a, b = (np.delete(x.reshape(len(x), 3, -1), 1, axis=1) for x in (a, b))
        np.testing.assert_allclose(b, a, atol=1e-5, err_msg=path_name(path))

    jax.tree_util.tree_map_with_path(compare, *jax.device_get((last.params, their_last.params)))


def random_state(optimizer=OPTIMIZER):
    """A state of random whole numbers."""
    draw = np.random.default_rng(0).integers
    return jax.tree.map(lambda x: draw(1, 99, x.shape).astype(x.dtype), first_state(optimizer))


MUON_KERNELS = {
    f"blocks/{name}/kernel"
    for name in (
        "attn/qkv",
        "attn/proj",
        "temporal_attn/qkv",
        "temporal_attn/proj",
        "temporal_fc",
        "mlp/fc1",
        "mlp/fc2",
    )
}


@pytest.mark.parametrize("setup", ["muon", "muon, fsdp and accumulation"])
def test_muon_takes_the_kernels_of_the_blocks(setup):
    state = fresh(compiled(setup)[0], MUON)
    muon, adam = (jax.tree_util.tree_leaves_with_path(part) for part in _muon_and_adam(state.opt_state))
    assert {path_name(path).partition("mu/")[2] for path, leaf in muon if leaf.ndim == 3} == MUON_KERNELS
    rest = trained_params(state.params).keys() - MUON_KERNELS
    assert {path_name(path).partition("mu/")[2] for path, _ in adam if "mu/" in path_name(path)} == rest


def test_muon_makes_the_singular_values_of_an_update_alike():
    params = first_state(MUON).params
    grads = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype), params)
    updates, _ = jax.jit(MUON.update)(grads, jax.jit(MUON.init)(params), params)
    for name in MUON_KERNELS:
        update, before = (trained_params(tree)[name] for tree in (updates, params))
        scale = 3e-3 * 0.2 * max(update.shape[1:]) ** 0.5  # the learning rate, the size of AdamW's updates, the shape
        singular = np.linalg.svd((update + 3e-3 * 0.1 * before) / scale, compute_uv=False)
        assert singular.min() > 0.3 and singular.max() < 1.3, name


def _muon_and_adam(opt_state):
    inner = opt_state.inner_states["trained"].inner_state[1].inner_states
    return inner["muon"], inner["adam"]


@pytest.mark.slow
def test_muon_on_a_mesh_equals_one_device():
    (ours, metrics), (theirs, others) = run(4, "muon"), run(4, "muon, fsdp and accumulation")
    np.testing.assert_allclose(others, metrics, rtol=1e-4)
    a, b = (trained_params(x.params) for x in jax.device_get((ours, theirs)))
    for name in MUON_KERNELS:
        np.testing.assert_allclose(b[name], a[name], atol=2e-5, err_msg=name)


def restored(state, folder):
    """A state of Muon on one device, saved and restored."""
    like = with_shardings(first_state(MUON), state_shardings(first_state(MUON), make_mesh(1)))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        return checkpoints.restore(like)


def test_the_state_of_muon_is_restored(tmp_path):
    state = random_state(MUON)
    assert_equal(restored(jax.device_put(state, state_shardings(state, make_mesh(1))), tmp_path), state)


@pytest.mark.slow
def test_muon_resumes_exactly(tmp_path):
    whole, _ = run(3, "muon")
    half, _ = run(2, "muon")
    assert_equal(run(1, "muon", state=restored(half, tmp_path))[0], whole)


def test_an_optimizer_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"leaves no parameter to muon: choose optimizer\.name=adamw"):
        make_optimizer(optax.constant_schedule(1.0), name="muon", frozen="blocks/.*kernel").init(first_state().params)


def test_fsdp_splits_what_it_should():
    state, _ = run(1, "accumulation")
    kernel = ("blocks", "mlp", "fc1", "kernel")
    for tree in (state.params, state.ema_params, state.opt_state.inner_states["trained"].inner_state[1][0].mu):
        for name in kernel:
            tree = tree[name]
        assert tree.sharding.spec == PartitionSpec(None, None, "fsdp")
        assert tree.addressable_shards[0].data.shape == (2, 32, 64)
    assert state.params["blocks"]["mlp"]["fc1"]["bias"].sharding.is_fully_replicated
    whole = on_one_device(state.params, compiled("accumulation")[0])
    assert_equal(whole, state.params)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(whole))


def test_an_axis_that_does_not_divide_stays_whole():
    shapes = {"blocks": {"a": {"kernel": jax.ShapeDtypeStruct((2, 8, 6), np.float32)}}}
    assert state_shardings(shapes, make_mesh(8, 4))["blocks"]["a"]["kernel"].spec == PartitionSpec()
    assert state_shardings(shapes, make_mesh(4, 2))["blocks"]["a"]["kernel"].spec == PartitionSpec(None, None, "fsdp")


@pytest.mark.parametrize(
    "sizes", [pytest.param((1, 8), marks=pytest.mark.slow), pytest.param((1, 2, 4, 8), marks=pytest.mark.slow)]
)
def test_checkpoints_move_between_all_meshes(sizes, tmp_path):
    meshes = [make_mesh(n, fsdp) for n in sizes for fsdp in sorted({1, n})]
    truth = random_state()
    for number, mesh in enumerate(meshes):
        with Checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.save(jax.device_put(truth, state_shardings(truth, mesh)))
            checkpoints.wait()
            for other in meshes:
                shardings = state_shardings(truth, other)
                restored = checkpoints.restore(with_shardings(truth, shardings))
                assert_equal(restored, truth)
                assert jax.tree.map(lambda x: x.sharding, restored) == shardings


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_leaves_all_as_it_was(value):
    mesh, step = compiled()
    state, _ = run(2)
    batch = next(data())
    batch["video"][3, 1, 2, 2, 0] = value
    poisoned = state
    for count in (1, 2):
        poisoned, metrics = step(poisoned, shard_batch(batch, mesh), KEY)
        assert not np.isfinite(metrics["grad_norm"])
        assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (count, count)
    unchanged = ("params", "ema_params", "opt_state")
    assert_equal([getattr(poisoned, name) for name in unchanged], [getattr(state, name) for name in unchanged])
    assert int(poisoned.step) == 4
    healed, _ = run(1, state=poisoned)
    assert healed.skipped.tolist() == [2, 0]
    assert not np.array_equal(
        healed.params["final_layer"]["linear"]["bias"], state.params["final_layer"]["linear"]["bias"]
    )


def test_frozen_parameters_stay_and_have_no_moments():
    frozen = "blocks/(attn|mlp)"
    optimizer = make_optimizer(optax.constant_schedule(1.0), frozen=frozen)
    params = first_state().params
    state = jax.jit(optimizer.init)(params)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(np.ones_like, params), state, params)
    moved = {path_name(path) for path, x in jax.tree_util.tree_leaves_with_path(updates) if np.any(x)}
    assert moved == trained_params(params, frozen).keys()
    assert "blocks/temporal_attn/qkv/kernel" in moved and not any(name.startswith("blocks/mlp") for name in moved)
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * count_trained(params, frozen) + 2
    for pattern, message in [
        ("(", "is not a regular expression"),
        ("blocs", "matches no parameter"),
        (".", "nothing to"),
    ]:
        with pytest.raises(UserError, match=message):
            trained_params(params, pattern)


def test_tables_are_never_trained():
    state, _ = run(2)
    before = fresh(compiled()[0])
    for name in FROZEN_PARAMS:
        np.testing.assert_array_equal(state.params[name], before.params[name])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["blocks"], before.params["blocks"])
    assert moved["adaLN_modulation"]["kernel"]


def test_draws_differ_from_step_to_step_and_key_to_key():
    mesh, step = compiled()
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

    @jax.jit
    def labels_of(batch):
        loss_fn(model, DIFFUSION, None, draw_examples(model, DIFFUSION, batch, KEY, label_dropout=0.25))
        return seen.pop()

    labels = np.asarray(labels_of(batch))
    assert set(np.unique(labels)) == {3, 5}
    assert (labels == 5).mean() == pytest.approx(0.25, abs=0.07)


def test_noise_is_drawn_as_shifted():
    """The noise level of a sample shows in the timestep that the network gets."""
    seen = []

    class Watched(VDT):
        def __call__(self, x, timesteps, labels=None):
            seen.append(timesteps)
            return jnp.zeros((*x.shape[:-1], 2 * self.in_channels))

    model = Watched(input_size=8, num_frames=2, in_channels=1, patch_size=8, hidden_size=8, depth=1, num_heads=1)
    batch = {"video": jnp.zeros((512, *model.video_shape)), "labels": jnp.zeros(512, jnp.int32)}

    @functools.partial(jax.jit, static_argnums=1)
    def timesteps_of(batch, shift):
        loss_fn(model, DIFFUSION, {}, draw_examples(model, DIFFUSION, batch, KEY, noise_shift=shift))
        return seen.pop()

    even, shifted = (np.asarray(timesteps_of(batch, shift)) for shift in (1.0, 3.0))
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


def test_gradients_are_clipped():
    optimizer = make_optimizer(optax.constant_schedule(1.0), clip_norm=1e-12)
    params = {"w": jnp.ones(3), "pos_embed": jnp.ones(3)}
    grads = {"w": jnp.array([3.0, 4.0, 0.0]), "pos_embed": jnp.full(3, 1e9)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # Adam's epsilon is 1e-8: a gradient of 1e-12 moves 1e-4, an unclipped one 1.
    assert np.abs(updates["w"]).max() < 1e-3
    np.testing.assert_array_equal(updates["pos_embed"], 0)


def test_without_clipping_and_warm_up_it_is_adamw_from_the_first_step():
    """Three steps of torch.optim.AdamW(lr=1e-4, weight_decay=0), with gradients of a norm of 50 and 0.5."""
    optimizer = make_optimizer(make_learning_rate(1e-4, 0, 100, "constant"), clip_norm=0.0)
    params, mean, square, expected = {"w": jnp.ones(2)}, 0, 0, np.ones(2)
    state = optimizer.init(params)
    for step, gradient in enumerate(([30.0, 40.0], [0.3, -0.4], [30.0, 40.0]), 1):
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        mean = 0.9 * mean + 0.1 * np.array(gradient)
        square = 0.999 * square + 0.001 * np.array(gradient) ** 2
        expected = expected - 1e-4 * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-7)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"batch_size .* must be a multiple of 8 devices, got 12"):
        check_batch_size(12, make_mesh())
    with pytest.raises(UserError, match=r"batch_size .* multiple of 8 devices x 2 parts \(grad_accum\), got 8"):
        check_batch_size(8, make_mesh(), grad_accum=2)
    with pytest.raises(UserError, match=r"mesh\.fsdp must divide the number of devices, 8, got 3"):
        make_mesh(fsdp=3)


def test_noise_on_given_frames_leaves_the_other_draws_as_they_are():
    model = VDT(input_size=4, num_frames=4, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1)
    batch = {"video": jnp.zeros((64, *model.video_shape)), "labels": jnp.zeros(64, jnp.int32)}
    draw = functools.partial(draw_examples, model, DIFFUSION, batch, KEY)
    plain, noisy = jax.jit(lambda: [draw(given_noise=noise) for noise in (0.0, 0.3)])()
    levels = noisy.pop("given_noise")
    assert levels.shape == (64,) and 0 <= levels.min() < 0.05 and 0.25 < levels.max() <= 0.3
    jax.tree.map(np.testing.assert_array_equal, noisy, plain)
