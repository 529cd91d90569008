"""Linear map, LayerNorm, gate, attention and GELU of a transformer, with their gradients written out.

The gradients are those that JAX would derive. Written out, every sum over rows is accumulated and returned in float32,
also in a bfloat16 model, so gradients are summed over devices in float32, too. And the backward pass moves less memory
on a GPU and takes less time on a CPU: see the comments.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

KEPT = "kept"  # the name of what remat=matmuls keeps: products of linear layers, and queries, keys and values


def linear(
    x: Float[Array, "rows features"], kernel: Float[Array, "features out"], bias: Float[Array, " out"], parts: int = 1
) -> tuple[Float[Array, "rows part"], ...]:
    """x @ kernel + bias in the dtype of x, in equal parts of the columns; parameter gradients are summed in float32.

    The parts are products of their own, but the gradient is one product: that of a kernel sharded by FSDP then needs no
    all-to-all.
    """
    return _linear(x, kernel, bias, parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _linear(x: Any, kernel: Any, bias: Any, parts: int) -> Any:
    return _linear_forward(x, kernel, bias, parts)[0]


def _linear_forward(x: Any, kernel: Any, bias: Any, parts: int) -> Any:
    pieces = zip(jnp.split(kernel.astype(x.dtype), parts, axis=1), jnp.split(bias.astype(x.dtype), parts), strict=True)
    # The product is kept, not its sum with the bias: what uses the sum adds the bias again, without a pass of its own.
    return tuple(checkpoint_name(x @ each, KEPT) + shift[None] for each, shift in pieces), (x, kernel)


def _linear_backward(parts: int, kept: Any, gradients: Any) -> Any:
    x, kernel = kept
    gradient = jnp.concatenate(gradients, axis=1)
    to_kernel = jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    # In sampling kernels are cast once before the loop over steps: their gradient has that dtype, or the loop fails.
    return gradient @ kernel.astype(x.dtype).T, to_kernel.astype(kernel.dtype), gradient.sum(0, dtype=jnp.float32)


_linear.defvjp(_linear_forward, _linear_backward)


def layer_norm(
    x: Float[Array, "*rows d"], scale: Float[Array, "*#rows d"], shift: Float[Array, "*#rows d"], epsilon: float
) -> Float[Array, "*rows d"]:
    """LayerNorm over the last axis, scaled and shifted, in the dtype of x (Ba et al. 2016, arXiv 1607.06450).

    The variance is that of two passes: the one of one pass is too inexact for the goldens.

    Args:
      x: tokens.
      scale, shift: float32, per feature, or per sample and feature as in adaLN (then 1 + the scale of DiT).
      epsilon: added to the variance.
    """
    return _layer_norm(x, scale, shift, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Any, scale: Any, shift: Any, epsilon: float) -> Any:
    return _layer_norm_forward(x, scale, shift, epsilon)[0]


def _layer_norm_forward(x: Any, scale: Any, shift: Any, epsilon: float) -> Any:
    mean = x.mean(-1, keepdims=True, dtype=jnp.float32)
    rate = jax.lax.rsqrt(jnp.square(x.astype(jnp.float32) - mean).mean(-1, keepdims=True) + epsilon)
    return ((x.astype(jnp.float32) - mean) * rate * scale + shift).astype(x.dtype), (x, scale, mean, rate)


def _layer_norm_backward(epsilon: float, kept: Any, gradient: Any) -> Any:
    x, scale, mean, rate = kept
    # Otherwise XLA would compute the statistics anew in the kernels of the sums, and store products to do so.
    mean, rate = jax.lax.optimization_barrier((mean, rate))
    normal = (x.astype(jnp.float32) - mean) * rate
    gradient = gradient.astype(jnp.float32)
    to_scale, to_shift = (sum_to(gradient * factor, scale.shape) for factor in (normal, 1))
    scaled = gradient * scale
    mean_of_scaled, along = (sum_to(scaled * factor, rate.shape) / x.shape[-1] for factor in (1, normal))
    return (rate * (scaled - mean_of_scaled - normal * along)).astype(x.dtype), to_scale, to_shift


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def gated(x: Float[Array, "*rows d"], gate: Float[Array, "*#rows d"]) -> Float[Array, "*rows d"]:
    """gate * x in the dtype of x; the gate is float32, as is its gradient."""
    return (gate * x).astype(x.dtype)


def _gated_backward(kept: Any, gradient: Any) -> Any:
    x, gate = kept
    return gated(gradient, gate), sum_to(gradient.astype(jnp.float32) * x, gate.shape)


gated.defvjp(lambda x, gate: (gated(x, gate), (x, gate)), _gated_backward)


@jax.custom_vjp
def attention(
    query: Float[Array, "*batch q e"], key: Float[Array, "*batch s e"], value: Float[Array, "*batch s e"]
) -> Float[Array, "*batch q e"]:
    """softmax(query keyᵀ) value; the softmax in float32, the query scaled by the caller.

    The gradient needs, for each query, the sum of its weights times their gradients. It equals the sum of the output
    times its gradient (FlashAttention: Dao et al. 2022, arXiv 2205.14135, appendix B.2); the shorter sum is taken.
    """
    return _attention_forward(query, key, value)[0]


def _attention_forward(query: Any, key: Any, value: Any) -> Any:
    logits = jnp.einsum("...qe,...se->...qs", query, key)
    weights = nn.softmax(logits.astype(jnp.float32)).astype(query.dtype)
    out = jnp.einsum("...qs,...se->...qe", weights, value)
    return out, (query, key, value, weights, out)


def _attention_backward(kept: Any, gradient: Any) -> Any:
    query, key, value, weights, out = kept
    to_weights = jnp.einsum("...qe,...se->...qs", gradient, value)
    one, other = (gradient, out) if out.shape[-1] < weights.shape[-1] else (to_weights, weights)
    along = sum_to(one.astype(jnp.float32) * other, (*one.shape[:-1], 1))
    to_logits = (weights * (to_weights - along)).astype(query.dtype)
    to_key, to_value = _over_queries(to_logits, query), _over_queries(weights, gradient)
    return jnp.einsum("...qs,...se->...qe", to_logits, key), to_key, to_value


def _over_queries(weights: Any, x: Any) -> Any:
    """weightsᵀ x; on a CPU by way of xᵀ, since XLA's CPU backend is slow where a product's rows are summed over."""

    def by_transposing(weights: Any, x: Any) -> Any:
        transposed = jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))
        return jnp.swapaxes(jax.lax.optimization_barrier(transposed @ weights), -1, -2)

    default = functools.partial(jnp.einsum, "...qs,...qe->...se")
    return jax.lax.platform_dependent(weights, x, cpu=by_transposing, default=default)


attention.defvjp(_attention_forward, _attention_backward)


def sum_to(x: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Sums of float32 over the axes that have length 1 in `shape`, and keeps these axes.

    On a CPU they are products with ones: a sum of products takes XLA's CPU backend ten times as long.
    """
    axes = tuple(axis for axis in range(x.ndim) if shape[axis] < x.shape[axis])
    if not axes:
        return x

    def by_product(x: Any) -> Any:
        first, last = axes[0], axes[-1] + 1  # other axes between these have length 1
        x = x.reshape(math.prod(x.shape[:first]), -1, math.prod(x.shape[last:]))
        if x.shape[2] == 1:
            return (x[..., 0] @ jnp.ones(x.shape[1], x.dtype)).reshape(shape)
        return (jnp.ones((len(x), 1, x.shape[1]), x.dtype) @ x).reshape(shape)

    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: x.sum(axes, keepdims=True))


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU, tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_backward(x: Any, gradient: Any) -> Any:
    # gelu(x) = x sigmoid(u), u = sqrt(8 / pi) (x + 0.044715 x^3); a tanh here would be shared with the recomputed
    # forward pass, and XLA would store it.
    wide = x.astype(jnp.float32)
    slope = (8 / jnp.pi) ** 0.5 * (1 + 3 * 0.044715 * wide**2)
    share = jax.nn.sigmoid((8 / jnp.pi) ** 0.5 * (wide + 0.044715 * wide**3))
    return ((gradient * share * (1 + wide * (1 - share) * slope)).astype(x.dtype),)


gelu.defvjp(lambda x: (jax.nn.gelu(x, approximate=True), x), _gelu_backward)


class AffineNorm(nn.Module):
    """LayerNorm with a scale and a shift per feature."""

    @nn.compact
    def __call__(self, x: Float[Array, "b f n d"]) -> Float[Array, "b f n d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        scale, bias = (jnp.asarray(leaf)[None, None, None] for leaf in (scale, bias))
        return layer_norm(x, scale, bias, 1e-5)


class Linear(nn.Module):
    """A linear layer; with `parts` the product is computed in equal parts of the features, and a tuple returned.

    Products are of (rows, features): with more axes XLA's CPU backend takes twice as long for the kernel's gradient.
    """

    features: int
    dtype: Any
    kernel_init: Callable[..., Any]
    parts: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Any:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        outs = linear(rows, jnp.asarray(kernel), jnp.asarray(bias), self.parts)
        outs = tuple(out.reshape(*x.shape[:-1], -1) for out in outs)
        return outs if self.parts > 1 else outs[0]


def dense(features: int, dtype: Any, name: str, zero: bool = False, normal: bool = False, parts: int = 1) -> Linear:
    """A linear layer with DiT's inits: Xavier-uniform, or zero, or N(0, 0.02); biases zero."""
    init = nn.initializers.xavier_uniform()
    if zero:
        init = nn.initializers.zeros
    if normal:
        init = nn.initializers.normal(0.02)
    return Linear(features, dtype, init, parts, name=name)
