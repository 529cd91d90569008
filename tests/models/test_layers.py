"""Layers of a transformer: the gradients that JAX derives, summed in float32 in a bfloat16 model too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdt_jax.models.layers import attention, gated, gelu, layer_norm, linear

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(KEYS[0], (2, 3, 5, 8))


def plain_norm(x, scale, shift):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-6) * scale + shift


def gradients(function, *arguments):
    weights = jax.random.normal(KEYS[3], jax.eval_shape(function, *arguments).shape)
    of = jax.grad(lambda *arguments: (function(*arguments) * weights).sum(), range(len(arguments)))
    return jax.jit(of)(*arguments)


@pytest.mark.parametrize("size", [(2, 1, 1, 8), (1, 1, 1, 8)], ids=["per sample", "per feature"])
def test_layer_norm_is_the_plain_one(size):
    scale, shift = 1 + jax.random.normal(KEYS[1], size), jax.random.normal(KEYS[2], size)
    ours = lambda *arguments: layer_norm(*arguments, 1e-6)  # noqa: E731
    np.testing.assert_allclose(ours(X, scale, shift), plain_norm(X, scale, shift), atol=1e-5)
    for mine, derived in zip(gradients(ours, X, scale, shift), gradients(plain_norm, X, scale, shift), strict=True):
        assert mine.shape == derived.shape and np.abs(derived).max() > 0.1
        np.testing.assert_allclose(mine, derived, atol=1e-5)


@pytest.mark.parametrize("num_keys", [1, 5, 12], ids=["one", "fewer than the width", "more"])
def test_attention_is_the_plain_one(num_keys):
    query, key, value = (jax.random.normal(KEYS[n], (2, 3, num_keys, 8)) for n in range(3))
    plain = lambda query, key, value: nn.softmax(query @ key.swapaxes(-1, -2)) @ value  # noqa: E731
    np.testing.assert_allclose(attention(query, key, value), plain(query, key, value), atol=1e-5)
    derived = gradients(plain, query, key, value)
    for mine, theirs in zip(gradients(attention, query, key, value), derived, strict=True):
        assert np.abs(theirs).max() > 0.1 or num_keys == 1  # then the only weight is always 1
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_a_gate_is_a_product(num_tokens):
    gate, x = jax.random.normal(KEYS[1], (2, 3, 1, 8)), X[:, :, :num_tokens]
    np.testing.assert_array_equal(gated(x, gate), gate * x)
    derived = gradients(lambda x, gate: gate * x, x, gate)
    for mine, theirs in zip(gradients(gated, x, gate), derived, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_gelu_is_the_plain_one():
    x = np.linspace(-6, 6, 101)
    np.testing.assert_array_equal(gelu(jnp.array(x)), nn.gelu(jnp.array(x), approximate=True))
    angle = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    exact = (1 + np.tanh(angle)) / 2 + x / 2 / np.cosh(angle) ** 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    np.testing.assert_allclose(jax.grad(lambda x: gelu(x).sum())(jnp.array(x)), exact, atol=1e-5)


def test_a_loop_over_a_layer_with_a_bfloat16_kernel_has_a_gradient():
    """As that of a sample with respect to the parameters."""
    rows, kernel, bias = jnp.ones((4, 2), jnp.bfloat16), jnp.ones((2, 2), jnp.bfloat16), jnp.zeros(2)

    def total(kernel):
        return jax.lax.scan(lambda x, _: (linear(x, kernel, bias)[0], None), rows, length=2)[0].sum()

    np.testing.assert_array_equal(jax.grad(total)(kernel), jnp.full((2, 2), 16, jnp.bfloat16))


def test_gradients_of_a_bfloat16_layer_are_summed_in_float32():
    """Sums over 4,095 rows, which need more than the eight bits of a bfloat16."""
    rows = jnp.full((4095, 2), 2.0**-9, jnp.bfloat16)
    kernel, bias = jnp.ones((2, 3)), jnp.zeros(3)

    def total(kernel, bias):
        (out,) = linear(rows, kernel, bias)
        return (out * jnp.bfloat16(1 + 2.0**-7)).sum(dtype=jnp.float32)

    to_kernel, to_bias = jax.jit(jax.grad(total, (0, 1)))(kernel, bias)
    assert to_kernel.dtype == to_bias.dtype == jnp.float32
    np.testing.assert_array_equal(to_bias, 4095 * (1 + 2.0**-7))
    np.testing.assert_array_equal(to_kernel, 4095 * 2.0**-9 * (1 + 2.0**-7))
    x, ones = rows.reshape(1, 1, 4095, 2), jnp.ones((1, 1, 1, 2))
    shift = jax.grad(lambda shift: layer_norm(x, ones, shift, 1e-6).sum(dtype=jnp.float32))(jnp.zeros_like(ones))
    np.testing.assert_array_equal(shift, 4095)
    few = jnp.full((1, 1, 15, 2), 1 + 2.0**-7, jnp.bfloat16)  # its square is not a bfloat16
    gate = jax.grad(lambda gate: (gated(few, gate) * few).sum(dtype=jnp.float32))(ones)
    np.testing.assert_array_equal(gate, jnp.full_like(ones, 15 * (1 + 2.0**-7) ** 2))
