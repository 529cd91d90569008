"""Image weights as a start: the video model is the image model, frame by frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT, sincos_embedding
from vdt_jax.weights.dit import is_image_model, with_temporal_layers
from vdt_jax.weights.vdt import from_torch, read_sizes

WIDTH, DEPTH, HEADS, CLASSES, CHANNELS, PATCH, SIDE = 16, 2, 2, 5, 4, 2, 3


@pytest.fixture(scope="module")
def image_weights():
    """Names and shapes of DiT, random and non-zero."""
    rng = np.random.default_rng(0)
    shapes = {
        "pos_embed": (1, SIDE**2, WIDTH),
        "x_embedder.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        "x_embedder.proj.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (WIDTH, 256),
        "t_embedder.mlp.0.bias": (WIDTH,),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
        "t_embedder.mlp.2.bias": (WIDTH,),
        "y_embedder.embedding_table.weight": (CLASSES + 1, WIDTH),
        "final_layer.linear.weight": (PATCH**2 * 2 * CHANNELS, WIDTH),
        "final_layer.linear.bias": (PATCH**2 * 2 * CHANNELS,),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
        "final_layer.adaLN_modulation.1.bias": (2 * WIDTH,),
    }
    layers = {
        "attn.qkv": (3, 1),
        "attn.proj": (1, 1),
        "mlp.fc1": (4, 1),
        "mlp.fc2": (1, 4),
        "adaLN_modulation.1": (6, 1),
    }
    for block in range(DEPTH):
        for name, (rows, columns) in layers.items():
            shapes[f"blocks.{block}.{name}.weight"] = (rows * WIDTH, columns * WIDTH)
            shapes[f"blocks.{block}.{name}.bias"] = (rows * WIDTH,)
    return {name: (rng.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}


def image_model(w, x, t, label):
    """DiT (arXiv 2212.09748, section 3) on one image (H, W, C), float64 NumPy, from torch's names and layouts."""

    def linear(name, x):
        return x @ np.float64(w[f"{name}.weight"]).T + w[f"{name}.bias"]

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def silu(x):
        return x / (1 + np.exp(-x))

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    patches = x.reshape(SIDE, PATCH, SIDE, PATCH, CHANNELS).transpose(0, 2, 4, 1, 3).reshape(SIDE**2, -1)
    tokens = patches @ w["x_embedder.proj.weight"].reshape(WIDTH, -1).T + w["x_embedder.proj.bias"] + w["pos_embed"][0]
    angles = t * np.exp(-np.log(10000) * np.arange(128) / 128)
    features = np.concatenate([np.cos(angles), np.sin(angles)])
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", features)))
    c = silu(c + w["y_embedder.embedding_table.weight"][label])
    for block in range(DEPTH):
        modulation = linear(f"blocks.{block}.adaLN_modulation.1", c)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = np.split(modulation, 6)
        qkv = linear(f"blocks.{block}.attn.qkv", norm(tokens) * (1 + scale_msa) + shift_msa)
        query, key, value = qkv.reshape(SIDE**2, 3, HEADS, WIDTH // HEADS).transpose(1, 2, 0, 3)
        logits = query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True)) @ value
        attended = attended.transpose(1, 0, 2).reshape(SIDE**2, WIDTH)
        tokens = tokens + gate_msa * linear(f"blocks.{block}.attn.proj", attended)
        hidden = gelu(linear(f"blocks.{block}.mlp.fc1", norm(tokens) * (1 + scale_mlp) + shift_mlp))
        tokens = tokens + gate_mlp * linear(f"blocks.{block}.mlp.fc2", hidden)
    shift, scale = np.split(linear("final_layer.adaLN_modulation.1", c), 2)
    out = linear("final_layer.linear", norm(tokens) * (1 + scale) + shift)
    out = out.reshape(SIDE, SIDE, PATCH, PATCH, 2 * CHANNELS).transpose(0, 2, 1, 3, 4)
    return out.reshape(SIDE * PATCH, SIDE * PATCH, 2 * CHANNELS)


def video_model(state_dict):
    sizes = read_sizes(state_dict, HEADS)
    model = VDT(**sizes)
    x = jnp.zeros((1, *model.video_shape))
    expected = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1))["params"]
    return model, from_torch(state_dict, sizes, expected)


@pytest.mark.parametrize("label", [0, 1])
def test_every_frame_is_the_image_models_at_its_null_label(image_weights, label):
    assert is_image_model(image_weights)
    model, params = video_model(with_temporal_layers(image_weights, 3, zero_time_embed=True))
    x = np.random.default_rng(1).standard_normal((2, *model.video_shape)).astype(np.float32)
    out = model.apply({"params": params}, jnp.asarray(x), jnp.array([7.0, 500.0]), jnp.full(2, label))
    for video, t, frames in zip(x, (7, 500), np.asarray(out), strict=True):
        for frame, ours in zip(video, frames, strict=True):
            theirs = image_model(image_weights, np.float64(frame), t, CLASSES)
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_temporal_branch_starts_at_zero_but_can_learn(image_weights):
    state_dict = with_temporal_layers(image_weights, 3, zero_time_embed=False)
    np.testing.assert_allclose(state_dict["time_embed"][0], sincos_embedding(np.arange(3), WIDTH), atol=1e-6)
    assert not state_dict["blocks.1.temporal_fc.weight"].any() and not state_dict["blocks.1.temporal_fc.bias"].any()
    qkv = [state_dict[f"blocks.{block}.temporal_attn.qkv.weight"] for block in range(DEPTH)]
    bound = np.sqrt(6 / (4 * WIDTH))
    assert np.abs(qkv).max() <= bound and np.std(qkv) > bound / 2 and (qkv[0] != qkv[1]).any()
    table = state_dict["y_embedder.embedding_table.weight"]
    np.testing.assert_array_equal(table, np.stack([image_weights["y_embedder.embedding_table.weight"][-1]] * 2))


def test_widths_that_disagree_are_refused_before_anything_is_made(image_weights):
    broken = image_weights | {"blocks.1.attn.qkv.weight": np.zeros((6, 2), np.float32)}
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.weight has shape \(6, 2\)"):
        with_temporal_layers(broken, 3, zero_time_embed=False)
