"""The network beyond the goldens: sizes, scan, initialisation, labels, frozen tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import (
    FROZEN_PARAMS,
    VDT,
    VDT_VARIANTS,
    Attention,
    grid_embedding,
    patchify,
    sincos_embedding,
    timestep_embedding,
    unpatchify,
)
from vdt_jax.training.optimizer import count_trained

TINY = dict(input_size=(4, 6), num_frames=3, in_channels=2, patch_size=2, hidden_size=16, depth=4, num_heads=2)


@functools.partial(jax.jit, static_argnums=0)
def init(model):
    return model.init(jax.random.key(0), jnp.zeros((1, *model.video_shape)), jnp.zeros(1))["params"]


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x, timesteps, labels=None):
    return model.apply({"params": params}, x, timesteps, labels)


def normal(seed, *shape):
    """Drawn by NumPy: the generator of JAX is compiled for each shape, which takes seconds."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def random_params(model):
    """Parameters that are all non-zero: adaLN-zero at initialisation makes any block pass."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: init(model)))
    return tree.unflatten([0.3 * normal(seed, *leaf.shape) for seed, leaf in enumerate(leaves)])


@pytest.mark.parametrize(("name", "millions"), [("VDT-S/2", 41.36), ("VDT-L/2", 859.7)])
def test_variants_have_the_known_number_of_parameters(name, millions):
    model = VDT(**VDT_VARIANTS[name])
    params = jax.eval_shape(lambda: init(model))
    assert count_trained(params) / 1e6 == pytest.approx(millions, abs=0.05)


def test_scanned_equals_unrolled():
    scanned, unrolled = VDT(**TINY), VDT(**TINY, unroll=4)
    params = random_params(scanned)
    x = normal(0, 2, *scanned.video_shape)
    t = jnp.array([3, 900])
    out = [apply(model, params, x, t) for model in (scanned, unrolled)]
    assert out[0].shape == (2, 3, 4, 6, 4) and np.abs(out[0]).max() > 0.1
    np.testing.assert_allclose(out[0], out[1], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near_float32_and_comes_out_as_float32():
    params = random_params(VDT(**TINY))
    x, t = normal(0, 2, 3, 4, 6, 2), jnp.array([3, 900])
    exact = apply(VDT(**TINY), params, x, t)
    rough = apply(VDT(**TINY, dtype="bfloat16"), params, x, t)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_output_is_zero_at_initialisation_but_blocks_are_not_the_identity():
    model = VDT(**TINY)
    params = init(model)
    out = apply(model, params, jnp.ones((1, *model.video_shape)), jnp.array([5]))
    np.testing.assert_array_equal(out, 0)
    assert float(jnp.abs(params["blocks"]["temporal_fc"]["kernel"]).mean()) > 0.05


def test_layers_start_with_their_own_numbers_within_xaviers_bound():
    kernel = np.asarray(init(VDT(**TINY))["blocks"]["attn"]["qkv"]["kernel"])
    bound = np.sqrt(6 / (16 + 48))  # of the fused matrix (D, 3D)
    assert kernel.shape == (4, 16, 48) and np.abs(kernel).max() <= bound and np.abs(kernel).max() > 0.9 * bound
    assert not np.array_equal(kernel[0], kernel[1])


def test_frames_and_rows_matter():
    """Temporal attention sees other frames; position tables tell rows from columns on a grid that is not square."""
    model = VDT(**TINY)
    params = random_params(model)
    x = normal(0, 1, *model.video_shape)
    out = apply(model, params, x, jnp.array([5]))
    changed = apply(model, params, x.at[0, 2].add(1.0), jnp.array([5]))
    assert np.abs(changed - out)[0, 0].max() > 1e-3
    table = grid_embedding((2, 3), 16)
    np.testing.assert_array_equal(table[1, :8], sincos_embedding(np.array([1.0]), 8)[0])  # token 1: column 1
    np.testing.assert_array_equal(table[3, 8:], sincos_embedding(np.array([1.0]), 8)[0])  # token 3: row 1


def test_timestep_features_are_cosine_first():
    features = np.asarray(timestep_embedding(jnp.array([0, 7])))
    np.testing.assert_array_equal(features[0], [1.0] * 128 + [0.0] * 128)
    assert features[1, 0] == pytest.approx(np.cos(7)) and features[1, 128] == pytest.approx(np.sin(7))


def test_labels_change_the_output_and_none_means_no_label():
    model = VDT(**TINY, num_classes=3)
    params = random_params(model)
    x, t = jnp.ones((4, *model.video_shape)), jnp.full(4, 5)
    out = np.asarray(apply(model, params, x, t, jnp.arange(4)))
    assert model.null_label == 3
    assert all(np.abs(out[i] - out[0]).max() > 1e-3 for i in (1, 2, 3))
    np.testing.assert_array_equal(out[3], apply(model, params, x, t)[0])


def test_a_model_of_one_class_takes_class_zero_by_default():
    model = VDT(**TINY)
    params = random_params(model)
    x, t = jnp.ones((2, *model.video_shape)), jnp.full(2, 5)
    out = apply(model, params, x, t, jnp.arange(2))
    assert np.abs(out[1] - out[0]).max() > 1e-3
    np.testing.assert_array_equal(out[0], apply(model, params, x, t)[0])


def test_fused_attention_is_that_of_xla(monkeypatch):
    """cuDNN is replaced by another implementation of the same call: layout and scale are tested, not the kernel."""
    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, implementation: fused(*qkv))
    x = normal(0, 2, 3, 6, 16)
    params = jax.jit(Attention(2, "tokens").init)(jax.random.key(1), x)
    expected, out = (jax.jit(Attention(2, "tokens", fused=fused).apply)(params, x) for fused in (False, True))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_attention_is_xlas_without_a_gpu():
    assert not VDT(**TINY, dtype="bfloat16").fused
    with pytest.raises(UserError, match=r"attention=cudnn does not work here .* use attention=auto or xla"):
        jax.eval_shape(lambda: init(VDT(**TINY, dtype="bfloat16", attention="cudnn")))


@pytest.mark.parametrize(("remat", "recomputed"), [("none", 0), ("matmuls", 4)])
def test_linear_layers_are_not_recomputed(remat, recomputed):
    """Of two attentions the logits and the weighted sum are: products in the gradient beyond three for each."""

    def products(model):
        params = jax.eval_shape(lambda: init(model))
        x = jnp.zeros((1, *model.video_shape))
        loss = lambda params: model.apply({"params": params}, x, jnp.zeros(1)).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")

    assert products(VDT(**TINY, remat=remat)) - products(VDT(**TINY)) == recomputed


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_unpatchify_inverts_patchify(frames, rows, columns, patch, channels):
    x = jnp.arange(2 * frames * rows * columns * patch**2 * channels, dtype=jnp.float32)
    x = x.reshape(2, frames, rows * patch, columns * patch, channels)

    @jax.jit
    def there_and_back(x):
        tokens = patchify(x, patch)
        assert tokens.shape == (2, frames, rows * columns, patch**2 * channels)
        return unpatchify(tokens, (rows, columns), patch)

    np.testing.assert_array_equal(there_and_back(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch_size=4), "patch_size=4 does not divide frames of 4x6"),
        (dict(num_heads=3), "hidden_size=16 must be a multiple"),
        (dict(depth=0), "depth must be >= 1, got 0"),
        (dict(dtype="float17"), "dtype must be float32 or bfloat16, got float17"),
        (dict(attention="flash"), "attention must be one of auto, xla, cudnn, got 'flash'"),
        (dict(attention="cudnn"), "attention=cudnn takes dtype=bfloat16, got float32: use attention=auto or xla"),
        (dict(attention="cudnn", dtype="bfloat16", hidden_size=24), "multiples of 8 up to 128, got 12: use attention="),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        VDT(**(TINY | change)).check_sizes()


def test_video_of_another_size_is_refused():
    with pytest.raises(UserError, match="takes videos"):
        jax.eval_shape(lambda: VDT(**TINY).init(jax.random.key(0), jnp.zeros((1, 3, 6, 4, 2)), jnp.zeros(1)))


def test_tables_are_where_the_official_checkpoint_has_them():
    assert set(FROZEN_PARAMS) <= set(init(VDT(**TINY)))
