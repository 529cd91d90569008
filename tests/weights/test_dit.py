"""Image weights as a start: the video model is the image model, frame by frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT, grid_embedding, sincos_embedding
from vdt_jax.weights.dit import is_diffusers_model, is_image_model, official_names, with_temporal_layers
from vdt_jax.weights.vdt import from_torch, read_sizes

WIDTH, DEPTH, HEADS, CLASSES, CHANNELS, PATCH, SIDE = 16, 2, 2, 5, 4, 2, 3


@pytest.fixture(scope="module")
def image_weights():
    """Names and shapes of DiT, random and non-zero."""
    rng = np.random.default_rng(0)
    shapes = {
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
    pos_embed = grid_embedding((SIDE, SIDE), WIDTH)[None].astype(np.float32)
    weights = {name: (rng.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
    return weights | {"pos_embed": pos_embed}


def diffusers_names(weights):
    """The same weights as DiTTransformer2DModel of diffusers 0.42 saves them."""
    found = {}
    for leaf in ("weight", "bias"):
        found[f"pos_embed.proj.{leaf}"] = weights[f"x_embedder.proj.{leaf}"]
        found[f"proj_out_1.{leaf}"] = weights[f"final_layer.adaLN_modulation.1.{leaf}"]
        found[f"proj_out_2.{leaf}"] = weights[f"final_layer.linear.{leaf}"]
        for n in range(DEPTH):
            ours, theirs = f"blocks.{n}.", f"transformer_blocks.{n}."
            for part, array in zip("qkv", np.split(weights[f"{ours}attn.qkv.{leaf}"], 3), strict=True):
                found[f"{theirs}attn1.to_{part}.{leaf}"] = array
            found[f"{theirs}attn1.to_out.0.{leaf}"] = weights[f"{ours}attn.proj.{leaf}"]
            found[f"{theirs}ff.net.0.proj.{leaf}"] = weights[f"{ours}mlp.fc1.{leaf}"]
            found[f"{theirs}ff.net.2.{leaf}"] = weights[f"{ours}mlp.fc2.{leaf}"]
            found[f"{theirs}norm1.linear.{leaf}"] = weights[f"{ours}adaLN_modulation.1.{leaf}"]
            for layer, number in (("linear_1", 0), ("linear_2", 2)):
                name = f"{theirs}norm1.emb.timestep_embedder.{layer}.{leaf}"
                found[name] = weights[f"t_embedder.mlp.{number}.{leaf}"]
            table = "norm1.emb.class_embedder.embedding_table.weight"
            found[theirs + table] = weights["y_embedder.embedding_table.weight"]
    return found


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
    # Label 0 with weights under diffusers' names, label 1 with DiT's own.
    theirs = official_names(diffusers_names(image_weights), (SIDE, SIDE)) if label == 0 else image_weights
    assert is_image_model(theirs)
    model, params = video_model(with_temporal_layers(theirs, 3, zero_time_embed=True))
    x = np.random.default_rng(1).standard_normal((2, *model.video_shape)).astype(np.float32)
    out = jax.jit(model.apply)({"params": params}, jnp.asarray(x), jnp.array([7.0, 500.0]), jnp.full(2, label))
    for video, t, frames in zip(x, (7, 500), np.asarray(out), strict=True):
        for frame, ours in zip(video, frames, strict=True):
            expected = image_model(image_weights, np.float64(frame), t, CLASSES)
            np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_the_temporal_branch_starts_at_zero_but_can_learn(image_weights):
    state_dict = with_temporal_layers(image_weights, 3, zero_time_embed=False)
    np.testing.assert_allclose(state_dict["time_embed"][0], sincos_embedding(np.arange(3), WIDTH), atol=1e-6)
    assert not state_dict["blocks.1.temporal_fc.weight"].any() and not state_dict["blocks.1.temporal_fc.bias"].any()
    qkv = [state_dict[f"blocks.{block}.temporal_attn.qkv.weight"] for block in range(DEPTH)]
    bound = np.sqrt(6 / (4 * WIDTH))
    assert np.abs(qkv).max() <= bound and np.std(qkv) > bound / 2 and (qkv[0] != qkv[1]).any()
    table = state_dict["y_embedder.embedding_table.weight"]
    np.testing.assert_array_equal(table, np.stack([image_weights["y_embedder.embedding_table.weight"][-1]] * 2))


def test_diffusers_names_become_dits(image_weights):
    theirs = diffusers_names(image_weights)
    assert is_diffusers_model(theirs) and not is_diffusers_model(image_weights)
    found = official_names(theirs, (SIDE, SIDE))
    assert found.keys() == image_weights.keys()
    for name, array in image_weights.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    np.testing.assert_allclose(official_names(theirs, (2, 5))["pos_embed"][0], grid_embedding((2, 5), WIDTH), atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias": np.ones(WIDTH)}, "differs from that of bl"),
        (
            {"transformer_blocks.1.attn1.to_k.weight": np.ones(2)},
            r"1\.attn1\.to_q\.weight is without its to_k and to_v",
        ),
        ({"transformer_blocks.1.attn1.to_k.weight": None}, r"1\.attn1\.to_q\.weight is without its to_k and to_v"),
        (
            {f"transformer_blocks.0.attn1.to_{part}.bias": np.ones(()) for part in "qkv"},
            "to_q.bias is without its to_k",
        ),
        ({"pos_embed.proj.weight": np.ones(8)}, r"pos_embed\.proj\.weight has shape \(8,\)"),
        ({"pos_embed.proj.weight": np.ones((6, 4, 2, 2))}, r"has shape \(6, 4, 2, 2\): 4 axes are needed"),
    ],
)
def test_weights_of_diffusers_that_do_not_fit(image_weights, change, message):
    broken = {name: array for name, array in (diffusers_names(image_weights) | change).items() if array is not None}
    with pytest.raises(UserError, match=message):
        official_names(broken, (SIDE, SIDE))


def test_without_a_null_row_the_classes_are_averaged(image_weights):
    table = with_temporal_layers(image_weights, 3, False, null_row=False)["y_embedder.embedding_table.weight"]
    mean = image_weights["y_embedder.embedding_table.weight"].mean(axis=0)
    np.testing.assert_allclose(table, np.stack([mean] * 2), atol=1e-6)


def test_widths_that_disagree_are_refused_before_anything_is_made(image_weights):
    broken = image_weights | {"blocks.1.attn.qkv.weight": np.zeros((6, 2), np.float32)}
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.weight has shape \(6, 2\)"):
        with_temporal_layers(broken, 3, zero_time_embed=False)
